r"""The two Triton kernels of a bank's updates, which :mod:`psmlib.kernels.fused_updates` launches.

`sweep` takes a tile of rows of one network forward and back. Activations pass from layer to layer on the chip, the
second hidden layer in strips of columns; they are left behind with the deltas for the gradients, and the way back reads
its slopes off them. `update` takes a tile of one layer's matrix, bias included as a row whose input is always 1, adds
up its gradient over the batch and moves parameters, moments and moving average.

What the products read lies as tensor cores want it, the summed index last: activations and deltas with the batch last,
the two hidden matrices in copies, each way round. Tensor cores cut operands off after ten bits where they should round,
which would shrink every product a little; so whatever is written for them is rounded before.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError:  # this file must be importable everywhere, to be documented
    triton = None


if triton is not None:

    @triton.jit
    def _slope(h):
        """ELU's derivative from its value: 1 above 0, exp(z) = h + 1 below."""
        return tl.minimum(h, 0.0) + 1.0

    @triton.jit
    def _elu(z):
        return tl.maximum(z, 0.0) + (tl.exp(tl.minimum(z, 0.0)) - 1.0)

    @triton.jit
    def _rounded(x, PRECISION: tl.constexpr):
        """To ten bits, ties away from zero, where the products take no more."""
        if PRECISION == "tf32":
            x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        return x

    @triton.jit
    def sweep(
        flat, stride,  # parameters (K, P), their row stride; a launcher of Triton's has a variable `params` of its own
        h, target,  # (K, B, F), (K, B, D)
        copies,  # (K, 2 A W + 2 C W): second matrix turned and straight, third matrix turned and straight
        inputs, deltas,  # (K, F + a + b + c + 4, padded batch), (K, a + b + c + D, padded batch)
        losses,  # (K, tiles), added to
        batch, padded, factor,
        F: tl.constexpr, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr, D: tl.constexpr,  # widths
        A: tl.constexpr, W: tl.constexpr, C: tl.constexpr, STRIP: tl.constexpr, ROWS: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """A tile of rows, forward and back; rows beyond the batch have no delta."""
        tile, k = tl.program_id(0), tl.program_id(1).to(tl.int64)
        row = tile * ROWS + tl.arange(0, ROWS)
        real = row < batch
        p = flat + k * stride
        bias2, bias3 = p + (F + 1) * a + a * b, p + (F + 1) * a + (a + 1) * b + b * c
        w4 = bias3 + c
        copies += k * (2 * A * W + 2 * C * W)
        turned2, straight2, turned3, straight3 = copies, copies + A * W, copies + 2 * A * W, copies + 2 * A * W + C * W
        h += k * batch * F + row * F
        target += k * batch * D + row * D
        inputs += k * (F + a + b + c + 4) * padded + row
        deltas += k * (a + b + c + D) * padded + row
        h1_at, h2_at, h3_at = F + 1, F + a + 2, F + a + b + 3
        ca, cc = tl.arange(0, A), tl.arange(0, C)
        in_a, in_c = ca < a, cc < c

        z = tl.zeros([ROWS, A], tl.float32) + tl.load(p + F * a + ca, mask=in_a, other=0.0)[None, :]
        if F <= 8:
            for f in tl.static_range(F):
                x = tl.load(h + f, mask=real, other=0.0)
                tl.store(inputs + f * padded, _rounded(x, PRECISION))
                z += x[:, None] * tl.load(p + f * a + ca, mask=in_a, other=0.0)[None, :]
        else:  # the same, not written out: a wide layer would fill the registers
            for f in range(F):
                x = tl.load(h + f, mask=real, other=0.0)
                tl.store(inputs + f * padded, _rounded(x, PRECISION))
                z += x[:, None] * tl.load(p + f * a + ca, mask=in_a, other=0.0)[None, :]
        h1 = _rounded(_elu(z), PRECISION)
        tl.store(inputs[:, None] + (h1_at + ca[None, :]) * padded, h1, mask=in_a[None, :])

        z3 = tl.zeros([ROWS, C], tl.float32) + tl.load(bias3 + cc, mask=in_c, other=0.0)[None, :]
        for start in range(0, b, STRIP):
            cb = start + tl.arange(0, STRIP)
            in_b = cb < b
            to = tl.load(turned2 + cb[:, None] * A + ca[None, :])
            z2 = tl.dot(h1, tl.trans(to), input_precision=PRECISION)
            h2 = _rounded(_elu(z2 + tl.load(bias2 + cb, mask=in_b, other=0.0)[None, :]), PRECISION)
            tl.store(inputs[:, None] + (h2_at + cb[None, :]) * padded, h2, mask=in_b[None, :])
            on = tl.load(turned3 + cc[:, None] * W + cb[None, :])
            z3 = tl.dot(h2, tl.trans(on), z3, input_precision=PRECISION)
        h3 = _elu(z3)
        tl.store(inputs[:, None] + (h3_at + cc[None, :]) * padded, _rounded(h3, PRECISION), mask=in_c[None, :])

        d3 = tl.zeros([ROWS, C], tl.float32)
        loss = tl.zeros([ROWS], tl.float32)
        for j in tl.static_range(D):
            out = tl.load(w4 + cc * D + j, mask=in_c, other=0.0)
            gap = tl.sum(h3 * out[None, :], 1) + tl.load(w4 + c * D + j) - tl.load(target + j, mask=real, other=0.0)
            gap = tl.where(real, gap, 0.0)
            loss += gap * gap
            tl.store(deltas + (a + b + c + j) * padded, _rounded(gap * factor, PRECISION))
            d3 += (gap * factor)[:, None] * out[None, :]
        losses += k * tl.num_programs(0) + tile
        tl.store(losses, tl.load(losses) + tl.sum(loss, 0) * (factor / 2))
        d3 = _rounded(d3 * _slope(h3), PRECISION)
        tl.store(deltas[:, None] + (a + b + cc[None, :]) * padded, d3, mask=in_c[None, :])

        tl.debug_barrier()  # what other threads of this program have stored is read from here on
        d1 = tl.zeros([ROWS, A], tl.float32)
        for start in range(0, b, STRIP):
            cb = start + tl.arange(0, STRIP)
            in_b = cb < b
            on = tl.load(straight3 + cb[:, None] * C + cc[None, :])
            h2 = tl.load(inputs[:, None] + (h2_at + cb[None, :]) * padded, mask=in_b[None, :], other=0.0)
            d2 = _rounded(tl.dot(d3, tl.trans(on), input_precision=PRECISION) * _slope(h2), PRECISION)
            tl.store(deltas[:, None] + (a + cb[None, :]) * padded, d2, mask=in_b[None, :])
            to = tl.load(straight2 + ca[:, None] * W + cb[None, :])
            d1 = tl.dot(d2, tl.trans(to), d1, input_precision=PRECISION)
        h1 = tl.load(inputs[:, None] + (h1_at + ca[None, :]) * padded, mask=in_a[None, :], other=0.0)
        tl.store(deltas[:, None] + ca[None, :] * padded, _rounded(d1 * _slope(h1), PRECISION), mask=in_a[None, :])

    @triton.jit
    def update(
        flat, stride, mean, square, average, grad,  # (K, P) each; average and grad may be unused
        copies, inputs, deltas,  # as in `sweep`
        places,  # (tiles, 11): see `psmlib.kernels.fused_updates.tiles`
        rates,  # (2,)
        padded, wide_in, wide_out, copies_stride, moment_stride, average_stride, share,
        ADAM: tl.constexpr, AVERAGE: tl.constexpr, R: tl.constexpr, C: tl.constexpr, DEPTH: tl.constexpr,
        BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """A tile of one layer's matrix; rows and columns that it has too many of are read and dropped."""
        places += tl.program_id(0) * 11
        k = tl.program_id(1).to(tl.int64)
        a, b = tl.load(places + 1), tl.load(places + 3)
        r = tl.load(places + 5) + tl.arange(0, R)
        c = tl.load(places + 6) + tl.arange(0, C)
        n = tl.arange(0, DEPTH)
        left = inputs + (k * wide_in + tl.load(places) + r[:, None]) * padded + n[None, :]
        right = deltas + (k * wide_out + tl.load(places + 2) + c[:, None]) * padded + n[None, :]
        g = tl.zeros([R, C], tl.float32)
        for _ in range(0, padded, DEPTH):
            g = tl.dot(tl.load(left), tl.trans(tl.load(right)), g, input_precision=PRECISION)
            left += DEPTH
            right += DEPTH
        at = tl.load(places + 4) + r[:, None] * b + c[None, :]
        mask = (r <= a)[:, None] & (c < b)[None, :]
        if ADAM:
            m = tl.load(mean + k * moment_stride + at, mask=mask, other=0.0)
            v = tl.load(square + k * moment_stride + at, mask=mask, other=0.0)
            m += (1 - BETA1) * (g - m)
            v = BETA2 * v + (1 - BETA2) * g * g
            tl.store(mean + k * moment_stride + at, m, mask=mask)
            tl.store(square + k * moment_stride + at, v, mask=mask)
            p = tl.load(flat + k * stride + at, mask=mask, other=0.0)
            p -= tl.load(rates) * m / (tl.sqrt(v) * tl.load(rates + 1) + EPS)
            tl.store(flat + k * stride + at, p, mask=mask)
            if AVERAGE:
                mine = tl.load(average + k * average_stride + at, mask=mask, other=0.0)
                tl.store(average + k * average_stride + at, mine + share * (p - mine), mask=mask)
            copies += k * copies_stride
            turned = tl.load(places + 8)
            held = (r < tl.minimum(a, turned * a))[:, None] & mask  # biases have no copies, outer matrices neither
            p = _rounded(p, PRECISION)
            tl.store(copies + tl.load(places + 7) + c[None, :] * turned + r[:, None], p, mask=held)
            tl.store(copies + tl.load(places + 9) + r[:, None] * tl.load(places + 10) + c[None, :], p, mask=held)
        else:
            tl.store(grad + k * moment_stride + at, g, mask=mask)
