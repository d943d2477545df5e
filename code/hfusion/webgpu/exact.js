// The module's numbers and its expected result, in float64, as `generator.py` has them. Pure.

const IMAGES = 5; // so many are different; a larger batch repeats them
const UNITS = ["b1", "b3_reduce", "b3", "b5_reduce", "b5", "pool_proj"];

// The finaliser of MurmurHash3 (Appleby 2011).
function mix(h) {
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

// `count` whole numbers from low to high, the same for the same stream.
function draw(stream, count, low, high) {
  const key = mix(stream + 1), values = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    values[i] = low + Math.floor((mix((i + key) >>> 0) * (high - low + 1)) / 2 ** 32);
  }
  return values;
}

// Of each convolution: input channels, output channels, side of the window.
function shapes([c, b1, r3, b3, r5, b5, proj]) {
  return {
    b1: [c, b1, 1], b3_reduce: [c, r3, 1], b3: [r3, b3, 3],
    b5_reduce: [c, r5, 1], b5: [r5, b5, 5], pool_proj: [c, proj, 1],
  };
}

// {unit: {weight [side² C, K], scale [K], shift [K], c, k, side}}.
function parameters(widths) {
  const units = {};
  for (const [place, [name, [c, k, side]]] of Object.entries(shapes(widths)).entries()) {
    units[name] = {
      c, k, side,
      weight: draw(3 * place + 1, side * side * c * k, -1, 1),
      scale: draw(3 * place + 2, k, 0, 1).map((half) => (1 + half) / 2),
      shift: draw(3 * place + 3, k, -8, 8),
    };
  }
  return units;
}

// `batch` images [N, H, W, C].
function images(c, size, batch) {
  const one = size * size * c, few = draw(0, Math.min(batch, IMAGES) * one, -4, 4);
  const all = new Float64Array(batch * one);
  for (let n = 0; n < batch; n++) all.set(few.subarray((n % IMAGES) * one, (n % IMAGES + 1) * one), n * one);
  return all;
}

// One image through convolution, norm and ReLU, by the definition: x [P, C] -> [P, K].
function unit(x, size, { c, k, side, weight, scale, shift }) {
  const out = new Float64Array(size * size * k), sum = new Float64Array(k);
  const radius = (side - 1) / 2;
  for (let p = 0; p < size * size; p++) {
    sum.fill(0);
    for (let tap = 0; tap < side * side; tap++) {
      const column = (p % size) + (tap % side) - radius;
      const row = Math.floor(p / size) + Math.floor(tap / side) - radius;
      if (column < 0 || column >= size || row < 0 || row >= size) continue;
      for (let j = 0; j < c; j++) {
        const value = x[(row * size + column) * c + j];
        if (value === 0) continue;
        const from = (tap * c + j) * k;
        for (let i = 0; i < k; i++) sum[i] += value * weight[from + i];
      }
    }
    for (let i = 0; i < k; i++) out[p * k + i] = Math.max(sum[i] * scale[i] + shift[i], 0);
  }
  return out;
}

// The largest of 3×3 neighbours, in each channel.
function pooled(x, size, c) {
  const out = new Float64Array(x.length).fill(-Infinity);
  for (let p = 0; p < size * size; p++) {
    for (let tap = 0; tap < 9; tap++) {
      const column = (p % size) + (tap % 3) - 1, row = Math.floor(p / size) + Math.floor(tap / 3) - 1;
      if (column < 0 || column >= size || row < 0 || row >= size) continue;
      for (let j = 0; j < c; j++) {
        out[p * c + j] = Math.max(out[p * c + j], x[(row * size + column) * c + j]);
      }
    }
  }
  return out;
}

// The whole module, [N, P, K]. `pause` is awaited now and then: a page must stay alive.
async function reference(widths, size, batch, units, x, pause) {
  const [c, b1, , b3, , b5, proj] = widths, k = b1 + b3 + b5 + proj, pixels = size * size;
  const y = new Float64Array(batch * pixels * k);
  for (let n = 0; n < Math.min(batch, IMAGES); n++) {
    const image = x.subarray(n * pixels * c, (n + 1) * pixels * c), made = {};
    const inputs = { b3: "b3_reduce", b5: "b5_reduce", pool_proj: "pool" };
    made.pool = pooled(image, size, c);
    for (const name of UNITS) {
      await pause(n, name);
      made[name] = unit(made[inputs[name]] ?? image, size, units[name]);
    }
    let place = 0;
    for (const name of ["b1", "b3", "b5", "pool_proj"]) {
      const width = units[name].k;
      for (let p = 0; p < pixels; p++) {
        y.set(made[name].subarray(p * width, (p + 1) * width), (n * pixels + p) * k + place);
      }
      place += width;
    }
  }
  const one = pixels * k;
  for (let n = IMAGES; n < batch; n++) y.copyWithin(n * one, (n % IMAGES) * one, (n % IMAGES + 1) * one);
  return y;
}

// Eight hexadecimal digits that change with any entry, or with two that are swapped.
function digest(values) {
  let sum = 0;
  values.forEach((value, i) => { sum = (sum + mix(mix(i) ^ (4 * value))) >>> 0; });
  return sum.toString(16).padStart(8, "0");
}

// How many entries are not what they must be. NaN differs from everything.
function differing(actual, expected) {
  let count = actual.length === expected.length ? 0 : Math.abs(actual.length - expected.length);
  for (let i = 0; i < Math.min(actual.length, expected.length); i++) if (actual[i] !== expected[i]) count++;
  return count;
}
