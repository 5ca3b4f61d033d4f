"""The Triton kernels of `scan_triton.py`, which explains the method and alone calls them.

Importing this module needs Triton. One program of each kernel works on one chunk of TOKENS tokens
and one block of CHANNELS channels of one scan of one image. A thread keeps its channels of all
tokens of the chunk in registers, as tuples with one (CHANNELS,) vector per token, and goes through
the states one after the other; nothing but the sums over channels needs more than one thread.

Pointers are named as the tensors in `scan_triton.py`, `u_l` is the stride of `u` along axis l.
A chunk counts tokens in the order of visit. Where the last chunk is longer than what is left, the
missing tokens repeat the last one with a step of zero, which leaves any state as it is.
"""

import functools

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
# Sizes for which no kernel of its own is compiled when they happen to be 1 or a multiple of 16.
_kernel = functools.partial(
    triton.jit,
    do_not_specialize=["orders", "images", "length", "rows", "columns", "chunks", "blocks"],
)


@_kernel
def gather_weights(
    B,
    B_k,
    B_b,
    B_l,
    B_n,
    C,
    C_k,
    C_b,
    C_l,
    C_n,
    visited_B,
    visited_C,
    orders,
    images,
    length,
    rows,
    columns,
    STATES: tl.constexpr,
    STATES_POWER: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Write B and C in the order of visit, (k, b, chunks, n, TOKENS), zero after the last token.

    They are small, and the other kernels then need one address for all tokens of a chunk.
    """
    scan, image, token, n, place, inside = _weights(
        orders, images, length, rows, columns, 1, STATES, STATES_POWER, TOKENS
    )
    b = _read(B + scan * B_k + image * B_b + token * B_l + n * B_n, inside)
    c = _read(C + scan * C_k + image * C_b + token * C_l + n * C_n, inside)
    tl.store(visited_B + place, b, mask=n < STATES)
    tl.store(visited_C + place, c, mask=n < STATES)


@_kernel
def scatter_gradients(
    parts_B,
    parts_C,
    grad_B,
    grad_C,
    blocks,
    orders,
    images,
    length,
    rows,
    columns,
    STATES: tl.constexpr,
    STATES_POWER: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Add up parts (k, b, chunks, blocks, n, TOKENS) over the blocks; write (k, b, l, n)."""
    scan, image, token, n, place, inside = _weights(
        orders, images, length, rows, columns, blocks, STATES, STATES_POWER, TOKENS
    )
    b = tl.zeros([STATES_POWER, TOKENS], tl.float32)
    c = tl.zeros([STATES_POWER, TOKENS], tl.float32)
    for block in range(blocks):
        b += _read(parts_B + place + block * STATES * TOKENS, inside)
        c += _read(parts_C + place + block * STATES * TOKENS, inside)
    row = ((scan * images + image) * length + token) * STATES + n
    tl.store(grad_B + row, b, mask=inside)
    tl.store(grad_C + row, c, mask=inside)


@_kernel
def chunk_states(
    u,
    u_k,
    u_b,
    u_l,
    u_d,
    delta,
    delta_k,
    delta_b,
    delta_l,
    delta_d,
    bias,
    A,
    B,
    states,
    spans,
    orders,
    images,
    length,
    rows,
    columns,
    channels,
    STATES: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write the state (n, d) after each chunk that starts empty, and the sum of its steps (d)."""
    chunk, chunks, scan, image, channel, inside = _place(images, length, channels, TOKENS, CHANNELS)
    order = _order(orders, scan)
    u += scan * u_k + image * u_b + channel * u_d
    delta += scan * delta_k + image * delta_b + channel * delta_d
    shift = _shift(bias, scan * channels + channel, inside, CHANNELS)

    steps = ()
    inputs = ()
    span = tl.zeros([CHANNELS], tl.float32)
    for t in tl.static_range(TOKENS):
        token = _token(chunk * TOKENS + t, order, length, rows, columns)
        here = channel < _width(chunk * TOKENS + t, length, channels)
        step = _step(delta + token * delta_l, shift, here, bias is not None)
        steps = steps + (step,)
        inputs = inputs + (step * _read(u + token * u_l, here),)
        span += step

    part = (scan * images + image) * chunks + chunk
    weights = part * STATES * TOKENS
    tl.store(spans + part * channels + channel, span, mask=inside)
    for n in range(STATES):
        rate = _LOG2_E * _read(A + (scan * STATES + n) * channels + channel, inside)
        h = tl.zeros([CHANNELS], tl.float32)
        for t in tl.static_range(TOKENS):
            b = tl.load(B + weights + n * TOKENS + t)
            h = tl.fma(tl.exp2(steps[t] * rate), h, inputs[t] * b)
        tl.store(states + (part * STATES + n) * channels + channel, h, mask=inside)


@_kernel
def chunk_gradients(
    grad_y,
    grad_y_b,
    grad_y_l,
    grad_y_d,
    delta,
    delta_k,
    delta_b,
    delta_l,
    delta_d,
    bias,
    A,
    C,
    grads,
    orders,
    images,
    length,
    rows,
    columns,
    channels,
    STATES: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write the gradient (n, d) of the state before each chunk, from the chunk's own y alone."""
    chunk, chunks, scan, image, channel, inside = _place(images, length, channels, TOKENS, CHANNELS)
    order = _order(orders, scan)
    grad_y += image * grad_y_b + channel * grad_y_d
    delta += scan * delta_k + image * delta_b + channel * delta_d
    shift = _shift(bias, scan * channels + channel, inside, CHANNELS)

    steps = ()
    upstream = ()
    for t in tl.static_range(TOKENS):
        token = _token(chunk * TOKENS + t, order, length, rows, columns)
        here = channel < _width(chunk * TOKENS + t, length, channels)
        steps = steps + (_step(delta + token * delta_l, shift, here, bias is not None),)
        upstream = upstream + (_read(grad_y + token * grad_y_l, here),)

    part = (scan * images + image) * chunks + chunk
    weights = part * STATES * TOKENS
    for n in range(STATES):
        rate = _LOG2_E * _read(A + (scan * STATES + n) * channels + channel, inside)
        carry = tl.zeros([CHANNELS], tl.float32)
        for t in tl.static_range(TOKENS - 1, -1, -1):
            c = tl.load(C + weights + n * TOKENS + t)
            carry = tl.exp2(steps[t] * rate) * tl.fma(upstream[t], c, carry)
        tl.store(grads + (part * STATES + n) * channels + channel, carry, mask=inside)


@_kernel
def join_chunks(
    states,
    spans,
    A,
    images,
    chunks,
    channels,
    STATES: tl.constexpr,
    BACKWARD: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Add to each chunk's own state, in place, what is left of the states of all chunks before it.

    With `BACKWARD` from the last chunk to the first. One program works on one of the n states of
    all chunks and reads TOKENS chunks at a time.
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    n = tl.program_id(1)
    pair = tl.program_id(2).to(tl.int64)
    rate = _LOG2_E * _read(A + (pair // images * STATES + n) * channels + channel, inside)
    start = pair * chunks + (chunks - 1 if BACKWARD else 0)
    stride = -channels if BACKWARD else channels
    spans += start * channels + channel
    states += (start * STATES + n) * channels + channel
    h = tl.zeros([CHANNELS], tl.float32)
    for first in range(0, chunks, TOKENS):
        decays = ()
        own = ()
        for i in tl.static_range(TOKENS):
            here = channel < _width(first + i, chunks, channels)
            decays = decays + (tl.exp2(rate * _read(spans + i * stride, here)),)
            own = own + (_read(states + i * STATES * stride, here),)
        for i in tl.static_range(TOKENS):
            here = channel < _width(first + i, chunks, channels)
            h = tl.fma(decays[i], h, own[i])
            tl.store(states + i * STATES * stride, h, mask=here)
        spans += TOKENS * stride
        states += TOKENS * STATES * stride


@_kernel
def outputs(
    u,
    u_k,
    u_b,
    u_l,
    u_d,
    delta,
    delta_k,
    delta_b,
    delta_l,
    delta_d,
    bias,
    A,
    B,
    C,
    D,
    states,
    parts,
    orders,
    images,
    length,
    rows,
    columns,
    channels,
    STATES: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write what each scan adds to y, parts (k, b, l, d), from the states after each chunk."""
    chunk, chunks, scan, image, channel, inside = _place(images, length, channels, TOKENS, CHANNELS)
    order = _order(orders, scan)
    u += scan * u_k + image * u_b + channel * u_d
    delta += scan * delta_k + image * delta_b + channel * delta_d
    shift = _shift(bias, scan * channels + channel, inside, CHANNELS)
    skip = _read(D + scan * channels + channel, inside)

    steps = ()
    inputs = ()
    y = ()
    for t in tl.static_range(TOKENS):
        token = _token(chunk * TOKENS + t, order, length, rows, columns)
        here = channel < _width(chunk * TOKENS + t, length, channels)
        step = _step(delta + token * delta_l, shift, here, bias is not None)
        value = _read(u + token * u_l, here)
        steps = steps + (step,)
        inputs = inputs + (step * value,)
        y = y + (skip * value,)

    pair = scan * images + image
    part = pair * chunks + chunk
    weights = part * STATES * TOKENS
    before = (part - 1) * STATES * channels + channel
    for n in range(STATES):
        rate = _LOG2_E * _read(A + (scan * STATES + n) * channels + channel, inside)
        h = _read(states + before + n * channels, channel < _width(-chunk, 0, channels))
        sums = ()
        for t in tl.static_range(TOKENS):
            b = tl.load(B + weights + n * TOKENS + t)
            c = tl.load(C + weights + n * TOKENS + t)
            h = tl.fma(tl.exp2(steps[t] * rate), h, inputs[t] * b)
            sums = sums + (tl.fma(h, c, y[t]),)
        y = sums
    for t in tl.static_range(TOKENS):
        token = _token(chunk * TOKENS + t, order, length, rows, columns)
        here = channel < _width(chunk * TOKENS + t, length, channels)
        row = (pair * length + token) * channels
        tl.store(parts + row + channel, y[t], mask=here)


@_kernel
def gradients(
    grad_y,
    grad_y_b,
    grad_y_l,
    grad_y_d,
    u,
    u_k,
    u_b,
    u_l,
    u_d,
    delta,
    delta_k,
    delta_b,
    delta_l,
    delta_d,
    bias,
    A,
    B,
    C,
    D,
    states,
    grads,
    grad_u,
    grad_delta,
    grad_A,
    grad_B,
    grad_C,
    grad_D,
    grad_bias,
    orders,
    images,
    length,
    rows,
    columns,
    channels,
    STATES: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write the gradients of a chunk, from the states after and the gradients before each chunk.

    grad_u and grad_delta are complete. The others are parts, to be added up: grad_B and grad_C over
    the blocks of channels, grad_A, grad_D and grad_bias over images and chunks.
    """
    chunk, chunks, scan, image, channel, inside = _place(images, length, channels, TOKENS, CHANNELS)
    order = _order(orders, scan)
    pair = scan * images + image
    part = pair * chunks + chunk
    grad_y += image * grad_y_b + channel * grad_y_d
    u += scan * u_k + image * u_b + channel * u_d
    delta += scan * delta_k + image * delta_b + channel * delta_d
    shift = _shift(bias, scan * channels + channel, inside, CHANNELS)
    skip = _read(D + scan * channels + channel, inside)

    steps = ()
    values = ()
    upstream = ()
    by_input = ()
    by_step = ()
    by_skip = tl.zeros([CHANNELS], tl.float32)
    for t in tl.static_range(TOKENS):
        token = _token(chunk * TOKENS + t, order, length, rows, columns)
        here = channel < _width(chunk * TOKENS + t, length, channels)
        value = _read(u + token * u_l, here)
        output = _read(grad_y + token * grad_y_l, here)
        steps = steps + (_step(delta + token * delta_l, shift, here, bias is not None),)
        values = values + (value,)
        upstream = upstream + (output,)
        by_input = by_input + (tl.zeros([CHANNELS], tl.float32),)
        by_step = by_step + (tl.zeros([CHANNELS], tl.float32),)
        by_skip = tl.fma(output, value, by_skip)
    tl.store(grad_D + part * channels + channel, by_skip, mask=inside)

    weights = part * STATES * TOKENS
    sums = (part * tl.num_programs(1) + tl.program_id(1)) * STATES * TOKENS
    for n in range(STATES):
        rate = _read(A + (scan * STATES + n) * channels + channel, inside)
        rate_2 = _LOG2_E * rate
        edge = (part * STATES + n) * channels + channel
        start = _read(states + edge - STATES * channels, channel < _width(-chunk, 0, channels))
        h = start
        decays = ()
        course = (start,)
        for t in tl.static_range(TOKENS):
            b = tl.load(B + weights + n * TOKENS + t)
            decay = tl.exp2(steps[t] * rate_2)
            h = tl.fma(decay, h, steps[t] * values[t] * b)
            decays = decays + (decay,)
            course = course + (h,)

        carry = _read(
            grads + edge + STATES * channels, channel < _width(chunk + 1, chunks, channels)
        )
        by_rate = tl.zeros([CHANNELS], tl.float32)
        new_input = ()
        new_step = ()
        for t in tl.static_range(TOKENS - 1, -1, -1):
            b = tl.load(B + weights + n * TOKENS + t)
            c = tl.load(C + weights + n * TOKENS + t)
            place = sums + n * TOKENS + t
            tl.store(grad_C + place, tl.sum(course[t + 1] * upstream[t]))
            grad = tl.fma(upstream[t], c, carry)
            tl.store(grad_B + place, tl.sum(grad * steps[t] * values[t]))
            carry = decays[t] * grad
            through_decay = carry * course[t]
            by_rate = tl.fma(through_decay, steps[t], by_rate)
            new_input = (tl.fma(grad, b, by_input[t]),) + new_input
            new_step = (tl.fma(through_decay, rate, by_step[t]),) + new_step
        by_input = new_input
        by_step = new_step
        tl.store(grad_A + edge, by_rate, mask=inside)

    by_bias = tl.zeros([CHANNELS], tl.float32)
    for t in tl.static_range(TOKENS):
        token = _token(chunk * TOKENS + t, order, length, rows, columns)
        here = channel < _width(chunk * TOKENS + t, length, channels)
        row = (pair * length + token) * channels + channel
        by_value = tl.fma(by_input[t], steps[t], skip * upstream[t])
        by_delta = tl.fma(by_input[t], values[t], by_step[t])
        if bias is not None:
            by_delta *= tl.sigmoid(_read(delta + token * delta_l, here) + shift)
            by_bias += tl.where(here, by_delta, 0.0)
        tl.store(grad_u + row, by_value, mask=here)
        tl.store(grad_delta + row, by_delta, mask=here)
    if bias is not None:
        tl.store(grad_bias + part * channels + channel, by_bias, mask=inside)


@_kernel
def gate_outputs(
    parts,
    gate,
    gate_b,
    gate_l,
    gate_d,
    y,
    gated,
    images,
    length,
    channels,
    SCANS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write y, the sum of the parts of all scans, if asked, and its product with silu(gate)."""
    image, token, channel, inside = _tile(length, channels, TOKENS, CHANNELS)
    row = (image * length + token) * channels + channel
    total = _read(parts + row, inside)
    for scan in tl.static_range(1, SCANS):
        more = ((scan * images + image) * length + token) * channels + channel
        total += _read(parts + more, inside)
    if y is not None:
        tl.store(y + row, total, mask=inside)
    if gate is not None:
        g = _read(gate + image * gate_b + token * gate_l + channel * gate_d, inside)
        total *= g * tl.sigmoid(g)
    tl.store(gated + row, total, mask=inside)


@_kernel
def gate_gradients(
    grad,
    grad_b,
    grad_l,
    grad_d,
    gate,
    gate_b,
    gate_l,
    gate_d,
    y,
    grad_y,
    grad_gate,
    length,
    channels,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write the gradients of y and of the gate."""
    image, token, channel, inside = _tile(length, channels, TOKENS, CHANNELS)
    row = (image * length + token) * channels + channel
    out = _read(grad + image * grad_b + token * grad_l + channel * grad_d, inside)
    g = _read(gate + image * gate_b + token * gate_l + channel * gate_d, inside)
    sigmoid = tl.sigmoid(g)
    silu = g * sigmoid
    tl.store(grad_y + row, out * silu, mask=inside)
    slope = sigmoid + silu * (1.0 - sigmoid)
    tl.store(grad_gate + row, out * _read(y + row, inside) * slope, mask=inside)


@triton.jit
def _place(images, length, channels, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return which chunk of how many, scan, image and channels this program works on."""
    chunk = tl.program_id(0)
    pair = tl.program_id(2).to(tl.int64)  # offsets that grow from it do not overflow
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return (
        chunk,
        tl.cdiv(length, TOKENS),
        pair // images,
        pair % images,
        channel,
        channel < channels,
    )


@triton.jit
def _weights(
    orders,
    images,
    length,
    rows,
    columns,
    blocks,
    STATES: tl.constexpr,
    STATES_POWER: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Return scan, image, tokens, states, place and mask of the weights (n, TOKENS) of a chunk."""
    chunk = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    scan = pair // images
    position = (chunk * TOKENS + tl.arange(0, TOKENS))[None, :]
    n = tl.arange(0, STATES_POWER)[:, None]
    token = _token(position, _order(orders, scan), length, rows, columns)
    part = (pair * tl.cdiv(length, TOKENS) + chunk) * blocks
    place = (part * STATES + n) * TOKENS + tl.arange(0, TOKENS)[None, :]
    return scan, pair % images, token, n, place, (position < length) & (n < STATES)


@triton.jit
def _order(orders, scan):
    """Return the order of a scan: 1 if it runs backwards, plus 2 if down the columns."""
    return (orders >> (2 * scan)) & 3


@triton.jit
def _token(position, order, length, rows, columns):
    """Return the token that a scan visits at a position; the last one at positions after it."""
    token = tl.minimum(position, length - 1).to(tl.int64)
    token = tl.where((order & 1) != 0, length - 1 - token, token)
    return tl.where((order & 2) != 0, token % rows * columns + token // rows, token)


@triton.jit
def _width(i, count, channels):
    """Return the number of channels if there is an i-th of `count` things, else 0."""
    return tl.where(i < count, channels, 0)


@triton.jit
def _read(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _shift(bias, offsets, mask, CHANNELS: tl.constexpr):
    """Return the bias of the steps, zero if there is none."""
    shift = tl.zeros([CHANNELS], tl.float32)
    if bias is not None:
        shift = _read(bias + offsets, mask)
    return shift


@triton.jit
def _step(pointers, shift, mask, SOFTPLUS: tl.constexpr):
    """Read steps, through softplus if asked; zero outside of the mask.

    log(1 + e) is summed as a series in s = e / (2 + e) <= 1/3, 2 (s + s^3 / 3 + s^5 / 5 + ...), for
    a step of 0.001 would lose four digits in 1 + e. The next term is below 1e-9 of the first.
    """
    step = _read(pointers, mask) + shift
    if SOFTPLUS:
        e = tl.exp(-tl.abs(step))
        s = e / (2.0 + e)
        s2 = s * s
        series = tl.full(s.shape, 1.0 / 17, tl.float32)
        for odd in tl.static_range(15, 0, -2):
            series = tl.fma(series, s2, 1.0 / odd)
        step = tl.maximum(step, 0.0) + 2.0 * s * series
    return tl.where(mask, step, 0.0)


@triton.jit
def _tile(length, channels, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return image, tokens and channels of this program in row-major order, as one tile."""
    token = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    image = tl.program_id(2).to(tl.int64)
    return image, token, channel, (token < length) & (channel < channels)
