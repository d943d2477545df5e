// Three sibling 1×1 convolutions over one input, three ways: their numbers, their expected result,
// and the dispatches of each way. Pure: nothing here touches a GPU.

const STAGE = ["separate", "stacked", "copied"];
const SIDES = [28, 14, 7], BATCHES = [1, 8, 32];
const CHECK = { row: "ragged", side: 9, batch: 2 }; // of widths that fill no tile

// What a pace measures: {row, side, batch}, small batches first. In a minute a module has the side
// that it has in GoogLeNet; siblings that are no module's have all.
function planned({ rows, sides, quick }, pace) {
  if (pace === "quick") {
    const few = [...new Set([quick, rows[rows.length - 1]])];
    return [1, 8].flatMap((batch) => few.map((row) => ({ row, side: 7, batch })));
  }
  const of = (row) => (pace === "minute" && row in sides ? [sides[row]] : SIDES);
  return BATCHES.flatMap((batch) => rows.flatMap((row) => of(row).map((side) => ({ row, side, batch }))));
}

const named = ({ row, side, batch }) => `${row}, ${side}×${side}, batch ${batch}`;
const sumOf = (numbers) => numbers.reduce((sum, one) => sum + one, 0);
const positionsOf = ({ side, batch }) => side * side * batch;

// Additions and multiplications of one way: the same for all three.
const stageFlops = ([c, ...sizes], one) => 2 * c * sumOf(sizes) * positionsOf(one);

// The stacked matrix [C, K] and, after it, the biases [K]. A row of it is a row of each sibling's.
function stackOf([c, ...sizes]) {
  const k = sumOf(sizes), values = new Float32Array((c + 1) * k);
  let column = 0;
  sizes.forEach((size, i) => {
    draw(3 * i + 1, c * size, -1, 1).forEach((value, at) => {
      values[Math.floor(at / size) * k + column + (at % size)] = value;
    });
    values.set(draw(3 * i + 3, size, -8, 8), c * k + column);
    column += size;
  });
  return values;
}

// X [P, C] times the stacked matrix, plus the biases, in float64: [P, K], all whole numbers that
// float32 holds. `pause` is awaited now and then.
async function stageExpected([c, ...sizes], stack, x, pause) {
  const k = sumOf(sizes), out = new Float32Array((x.length / c) * k), sum = new Float64Array(k);
  const bias = stack.subarray(c * k), often = Math.ceil(2e7 / (c * k));
  for (let p = 0; p < x.length / c; p++) {
    if (p % often === 0) await pause();
    sum.set(bias);
    for (let j = 0; j < c; j++) {
      const value = x[p * c + j];
      if (value === 0) continue;
      for (let i = 0; i < k; i++) sum[i] += value * stack[j * k + i];
    }
    out.set(sum, p * k);
  }
  return out;
}

// {way: [dispatch, …]}. A dispatch: {kernel, jobs, groups, x, y}, with names of buffers.
function stagePrograms([c, ...sizes], positions) {
  const k = sumOf(sizes), begins = sizes.map((_, i) => sumOf(sizes.slice(0, i)));
  const product = (width, begin, y) => ({
    kernel: "product", x: "x", y, groups: Math.ceil(positions / 32) * Math.ceil(width / 32),
    jobs: [{ kind: PRODUCT, pixels: positions, height: 1, width: positions, side: 1, c_in: c / 4,
      c_out: width / 4, x_stride: c / 4, w_offset: begin / 4, w_stride: k / 4, shift: (c * k + begin) / 4,
      epilogue: BIAS, y_stride: width / 4 }],
  });
  const copy = (width, begin, y) => ({
    kernel: "copy", x: "stack", y, groups: Math.ceil((positions * width) / 256),
    jobs: [{ pixels: positions, c_out: width / 4, x_offset: begin / 4, x_stride: k / 4, y_stride: width / 4 }],
  });
  const stacked = product(k, 0, "stack"), each = (make) => sizes.map((size, i) => make(size, begins[i], `own ${i}`));
  return { separate: each(product), stacked: [stacked], copied: [stacked, ...each(copy)] };
}

// {buffer: floats}.
function stageBuffers([c, ...sizes], positions) {
  const own = Object.fromEntries(sizes.map((size, i) => [`own ${i}`, positions * size]));
  return { x: positions * c, stack: positions * sumOf(sizes), ...own };
}

// How many entries of some columns are not as expected; a larger batch repeats the images expected.
function differingColumns(actual, expected, [begin, width, k], positions) {
  const rows = expected.length / k;
  let differ = 0;
  for (let p = 0; p < positions; p++) {
    const from = (p % rows) * k + begin;
    for (let j = 0; j < width; j++) if (actual[p * width + j] !== expected[from + j]) differ++;
  }
  return differ;
}
