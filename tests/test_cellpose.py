"""Segmentations of Cellpose: the labels come out, and nothing in the file ever runs."""

import io
import os
import pathlib
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimunet.bridges import cellpose
from vimunet.bridges.cellpose import read_seg


def segmentation(masks, **more):
    """What Cellpose 4 saves: its masks_flows_to_seg, and some of what its window adds."""
    content = {
        "outlines": masks.astype(np.uint16),
        "masks": masks,
        "chan_choose": [0, 0],
        "ismanual": np.zeros(int(masks.max(initial=0)), bool),
        "filename": "/data/cells.tif",
        "flows": [np.zeros((1, 4, 4, 3), np.uint8), [], None, np.ones((3, 4, 4), np.float32)],
        "diameter": np.nan,
        "est_diam": np.float32(17.5),
        "model_path": 0,
        "flow_threshold": 0.4,
        "normalize_params": {"lowhigh": None, "percentile": [1.0, 99.0], "tile": np.True_},
        "manual_changes": [["2024-01-01", "removed mask", [1, 2]]],
        "path": (pathlib.PurePosixPath("/data/cells.tif"), pathlib.PureWindowsPath("C:/cells.tif")),
    }
    return content | more


def header(shape="()", kind="|O"):
    file = io.BytesIO()
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n")
    return file.getvalue()


def save(path, pickled):
    path.write_bytes(header() + pickled)
    return path


def stored(path, content, protocol=4):
    array = np.empty((), object)
    array[()] = content
    return save(path, pickle.dumps(array, protocol=protocol))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "int64", ">u2"])
def test_labels_come_out(tmp_path, rng, dtype):
    masks = rng.integers(0, 90, (7, 5)).astype(dtype)
    np.save(tmp_path / "cells_seg.npy", segmentation(masks))
    labels = read_seg(tmp_path / "cells_seg.npy")
    assert labels.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(labels, masks)
    labels[0] = 1  # not a read-only view of the file


@pytest.mark.parametrize("masks", [np.arange(24).reshape(2, 3, 4), np.zeros((6, 4), np.uint16)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_stacks_order_and_nothing_found(tmp_path, masks, order):
    np.save(tmp_path / "cells_seg.npy", segmentation(np.asarray(masks, order=order)))
    np.testing.assert_array_equal(read_seg(tmp_path / "cells_seg.npy"), masks)
    np.save(tmp_path / "cells_seg.npy", segmentation(np.asarray(masks, order=order)[None]))
    np.testing.assert_array_equal(read_seg(tmp_path / "cells_seg.npy"), masks)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_both_names_of_numpys_module(tmp_path, rng, module, protocol):
    masks = rng.integers(0, 9, (7, 5)).astype(np.uint16)
    array = np.empty((), object)
    array[()] = segmentation(masks)
    pickled = pickle.dumps(array, protocol=protocol)
    for other in ("numpy.core", "numpy._core"):
        old, new = f"{other}.multiarray", f"{module}.multiarray"
        text = b"\x8c%c" % len(old) + old.encode(), b"\x8c%c" % len(new) + new.encode()
        pickled = pickled.replace(*text).replace(f"c{old}\n".encode(), f"c{new}\n".encode())
    if protocol == 4:  # the frame has another length then
        pickled = b"\x80\x04" + pickled[11:]
    assert module.encode() + b".multiarray" in pickled
    np.testing.assert_array_equal(read_seg(save(tmp_path / "a_seg.npy", pickled)), masks)


class Calls:
    """Pickles itself as a call of any function."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def hostile(marker):
    """Pickles that would make the file `marker`, or load something, by all ways known to us."""
    touch = f"open({str(marker)!r}, 'w').close()"
    array = np.zeros((2, 2), np.uint16)
    yield "system", Calls(os.system, f"touch {marker}")
    yield "eval", Calls(eval, touch)
    yield "exec", Calls(exec, touch)
    yield "load", Calls(np.load, str(marker))
    yield "getattr", Calls(getattr, "", "join")
    yield "open", Calls(open, str(marker), "w")
    yield "in the dict", segmentation(array, extra=Calls(eval, touch))
    yield "as a key", {**segmentation(array), Calls(eval, touch): 1}
    yield "as masks", segmentation(array) | {"masks": Calls(eval, touch)}
    yield "in an object array", segmentation(array, extra=np.array([Calls(eval, touch)], object))
    yield "as a state", segmentation(array, extra=Calls(np.ndarray, (2,), state=Calls(eval, touch)))


HOSTILE = [name for name, _ in hostile("")]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_runs(tmp_path, name, protocol):
    marker = tmp_path / "marker"
    content = dict(hostile(marker))[name]
    path = stored(tmp_path / "bad_seg.npy", content, protocol)
    with pytest.raises(ValueError, match=r"bad_seg\.npy must be a segmentation .* got: "):
        read_seg(path)
    assert not marker.exists()
    if name in ("eval", "open", "as masks", "in the dict"):  # it would have run
        np.load(path, allow_pickle=True)
        assert marker.exists()


def test_what_is_refused_is_named(tmp_path):
    path = stored(tmp_path / "bad_seg.npy", Calls(eval, "1"))
    with pytest.raises(ValueError, match=r"bad_seg.npy .* got: an object of builtins\.eval\. Let"):
        read_seg(path)


# Pickles written by hand; what `pickle` makes of them if it is asked is in the comments.
BY_HAND = {
    "INST": b"(S'1'\nibuiltins\neval\n.",
    "OBJ": b"(cbuiltins\neval\nS'1'\no.",
    "persistent": b"Pname\n.",
    "extension": b"\x82\x01.",
    "newobj": b"\x80\x02cnumpy\nndarray\n(K\x01t\x81.",
    "set": b"\x80\x04\x8f.",
    "dotted name": b"\x80\x04\x8c\x08builtins\x8c\x0d__import__.os\x93.",
    "module of a class": b"\x80\x02cnumpy\ndtype.__init__.__globals__\n.",
    "attributes of our class": (
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\nN}\x8c\x09__class__K\x01s\x86b."
    ),
    "method of our class": (
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n}\x8c\x05stateK\x01sb."
    ),
    "items of our class": b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n)RK\x01a.",
    "class as a dict": b"\x80\x04cnumpy\nndarray\nK\x01K\x02s.",
    "no operations": b"",
    "only STOP": b".",
    "stack underflow": b"\x80\x04R.",
    "memo of nothing": b"\x80\x04h\x05.",
    "number": b"\x80\x04K\x01.",
    "unhashable key": b"\x80\x04}]K\x01s.",
}


@pytest.mark.parametrize("name", BY_HAND)
def test_pickles_by_hand(tmp_path, name):
    before = {kind: dict(vars(kind)) for kind in (cellpose._Noted, cellpose._Array, cellpose._Kind)}
    with pytest.raises(ValueError, match=r"a_seg\.npy must be a segmentation as Cellpose saves it"):
        read_seg(save(tmp_path / "a_seg.npy", BY_HAND[name]))
    assert before == {kind: dict(vars(kind)) for kind in before}


BOMBS = {
    "memo": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b".",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
    "number": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
    "doubled tuples": b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b".",
    "many values": b"\x80\x04](" + b"]" * (2**20 + 9) + b"e.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_bounded_by_the_size_of_the_file(tmp_path, name):
    path = save(tmp_path / "a_seg.npy", BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a_seg\.npy must be a segmentation"):
            read_seg(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 20 * len(BOMBS[name])
    finally:
        tracemalloc.stop()


def masks_of(shape=(2, 3), kind="u2", order="<", numbers=bytes(12), by_columns=False):
    """A segmentation whose masks have any state, also one that numpy would not write."""
    reconstruct = np.zeros(1).__reduce__()[0]
    dtype = Calls(np.dtype, kind, False, True, state=(3, order, None, None, None, -1, -1, 0))
    state = (1, shape, dtype, by_columns, numbers)
    return {"masks": Calls(reconstruct, np.ndarray, (0,), b"b", state=state)}


def test_state_of_the_masks_by_hand(tmp_path):
    numbers = struct.pack(">6h", 1, 2, 3, 4, 5, 6)
    content = masks_of(order=">", numbers=numbers, kind="i2")
    assert read_seg(stored(tmp_path / "a_seg.npy", content)).tolist() == [[1, 2, 3], [4, 5, 6]]
    content = masks_of(order=">", numbers=numbers, kind="i2", by_columns=True)
    assert read_seg(stored(tmp_path / "a_seg.npy", content)).tolist() == [[1, 3, 5], [2, 4, 6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (masks_of(shape=(2**40, 2**40)), "without all their numbers"),
        (masks_of(shape=(2, 2)), r"shape \(2, 2\) and uint16 without all their numbers"),
        (masks_of(shape=(-2, -3)), r"`masks` of shape \(-2, -3\)"),
        (masks_of(shape=(2, 3.0)), r"`masks` of shape \(2, 3.0\)"),
        (masks_of(shape=(True, 6)), r"`masks` of shape \(True, 6\)"),
        (masks_of(shape=(6,)), r"`masks` of shape \(6,\)"),
        (masks_of(shape=(1, 2, 1, 3, 1)), r"`masks` of shape \(1, 2, 1, 3, 1\)"),
        (masks_of(shape=None), "not iterable"),
        (masks_of(numbers=[1] * 12), "without all their numbers"),
        (masks_of(kind="O8", order="|", numbers=[None] * 6), "`masks` of dtype O8"),
        (masks_of(kind="f2"), "`masks` of dtype f2, which are no whole numbers"),
        (masks_of(kind="i2,u2"), "`masks` of dtype i2,u2"),
        (masks_of(kind="u2\n"), "`masks` of dtype u2"),
        (masks_of(order="<u2,O"), "`masks` of dtype u2"),
        (masks_of(kind="i2", numbers=b"\xff" * 12), "negative number -1 in `masks`"),
        ({"masks": None}, "`masks` of type NoneType"),
        ({"masks": [[1, 2], [3, 4]]}, "`masks` of type list"),
        ({"masks": np.float32(3)}, "`masks` of type Noted"),
        ({"masks": np.zeros((2, 3), bool)}, "`masks` of dtype b1"),
        ({"outlines": 1, "flows": 2, 7: 3}, "a dict without `masks`, but with outlines, flows"),
        ({}, "a dict without `masks`, but with nothing"),
        ([1], "an array without a dict in it"),
        ("masks", "an array without a dict in it"),
        ({"x" * 5000: 1}, r"x{200,300}\. Let Cellpose"),
    ],
)
def test_no_masks(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"a_seg\.npy must be .* got: .*{message}"):
        read_seg(stored(tmp_path / "a_seg.npy", content))


def test_files_that_are_no_segmentations(tmp_path):
    path = tmp_path / "a_seg.npy"
    with pytest.raises(FileNotFoundError, match=r"No such file: .*a_seg\.npy"):
        read_seg(path)
    for content, message in [
        (b"", "reading magic string"),
        (b"P5 9 9 255", "magic string is not correct"),
        (header()[:30], "reading array header"),
        (b"\x93NUMPY\x03\x00" + header()[8:], r"version \(3, 0\) of the npy format"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31), "reading array header"),
        (header("(3,)"), r"an array of shape \(3,\) and object"),
        (header("()", "<u2"), r"an array of shape \(\) and uint16"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a_seg\.npy must be a segmentation .*{message}"):
            read_seg(path)
    np.save(path, np.zeros((3, 4), np.uint16))
    with pytest.raises(ValueError, match=r"got: an array of shape \(3, 4\) and uint16"):
        read_seg(path)
    np.save(path, np.empty(3, object))
    with pytest.raises(ValueError, match=r"got: an array of shape \(3,\) and object"):
        read_seg(path)


def test_cut_off_anywhere(tmp_path, rng):
    whole = tmp_path / "whole_seg.npy"
    np.save(whole, segmentation(rng.integers(0, 9, (7, 5)).astype(np.uint16)))
    data = whole.read_bytes()
    for cut in range(len(data)):
        (tmp_path / "cut_seg.npy").write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"cut_seg\.npy must be a segmentation"):
            read_seg(tmp_path / "cut_seg.npy")


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_bytes_changed(tmp_path_factory, changes):
    """Labels or a ValueError, never anything else."""
    file = io.BytesIO()
    np.save(file, segmentation(np.arange(12, dtype=np.uint16).reshape(3, 4)))
    data = bytearray(file.getvalue())
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path_factory.mktemp("seg") / "a_seg.npy"
    path.write_bytes(data)
    try:
        assert read_seg(path).dtype.kind in "iu"
    except ValueError as error:
        assert "a_seg.npy" in str(error)


@given(st.binary(max_size=80))
def test_any_pickle(tmp_path_factory, pickled):
    with pytest.raises(ValueError, match=r"a_seg\.npy must be a segmentation"):
        read_seg(save(tmp_path_factory.mktemp("seg") / "a_seg.npy", b"\x80\x04" + pickled + b"."))
