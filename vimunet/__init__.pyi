from .datasets import samples as samples
from .io.pairs import Sample as Sample
from .io.pairs import find_pairs as find_pairs
from .models import MODELS as MODELS
from .models import Network as Network
from .models import build_model as build_model
from .objects.measurement import measure as measure
from .representations import REPRESENTATIONS as REPRESENTATIONS
from .representations import Boundaries as Boundaries
from .representations import Distances as Distances
from .representations import Representation as Representation
from .representations import Semantic as Semantic
from .representations import build_representation as build_representation
from .scores.folders import evaluate as evaluate
from .segmentation.model_file import TrainedModel as TrainedModel
from .segmentation.model_file import embedded_models as embedded_models
from .segmentation.model_file import load_model as load_model
from .segmentation.model_file import save_model as save_model
from .segmentation.predict import predict as predict
from .segmentation.segment import segment as segment
from .training.config import TrainConfig as TrainConfig
from .training.fine_tuning import fine_tune as fine_tune
from .training.loop import train as train
from .training.recipes import RECIPES as RECIPES
from .training.tuning import tune as tune

__version__: str
