// The Inception module's six rungs, each a list of dispatches. Pure: nothing here touches a GPU.

const RUNGS = ["as written", "folded", "folded, stacked", "folded, stacked, hoisted",
  "folded, stacked, one call", "two launches"];
const FIELDS = ["kind", "until", "pixels", "height", "width", "side", "c_in", "c_out", "x_offset", "x_stride",
  "w_offset", "w_stride", "scale", "shift", "epilogue", "y_offset", "y_stride", "cut", "z_offset", "z_stride"];
const PRODUCT = 0, POOL = 1;
const BIAS = 1, RELU = 2;
const POOLED = 8; // as in routed.wgsl

// All parameters in one memory, and where each begins in it, in vec4f. Siblings lie side by side:
// a row of the stacked matrix is a row of each of theirs, so one copy serves alone and stacked.
function packed(units) {
  const siblings = ["b1", "b3_reduce", "b5_reduce"], groups = [siblings, ["b3"], ["b5"], ["pool_proj"]];
  const all = Object.values(units), places = {};
  const values = new Float32Array(2 * all.reduce((sum, { weight, k }) => sum + weight.length + k, 0));
  let end = 0;
  const matrix = (names, folded) => {
    const k = names.reduce((sum, name) => sum + units[name].k, 0);
    let column = end;
    for (const name of names) {
      const { weight, scale, k: own } = units[name];
      for (let i = 0; i < weight.length; i++) {
        values[column + Math.floor(i / own) * k + (i % own)] = weight[i] * (folded ? scale[i % own] : 1);
      }
      places[name] = { ...places[name], [folded ? "folded" : "plain"]: column / 4, stride: k / 4 };
      column += own;
      end += weight.length;
    }
  };
  for (const folded of [false, true]) for (const names of groups) matrix(names, folded);
  for (const what of ["scale", "shift"]) {
    for (const name of groups.flat()) {
      values.set(units[name][what], end);
      places[name][what] = end / 4;
      end += units[name].k;
    }
  }
  places.stack = places.b1; // with more columns
  return { values, places };
}

// What dispatches are made of. A dispatch: {kernel, jobs, groups, x, y, …}, with names of buffers; a
// view, a part of a buffer's channels: {name, stride, offset}.
function pieces(widths, size, batch, places) {
  const [c, w1, r3, w3, r5, w5, wp] = widths.map((width) => width / 4);
  const total = w1 + w3 + w5 + wp, k = w1 + r3 + r5, pixels = batch * size * size;
  const shape = { pixels, height: size, width: size };
  const view = (name, stride, offset = 0) => ({ name, stride, offset });
  const ends = (x, y) => ({ x_offset: x.offset, x_stride: x.stride, y_offset: y.offset, y_stride: y.stride });
  const each = (width) => Math.ceil((pixels * width) / 64);
  const tiles = (width) => Math.ceil(pixels / 32) * Math.ceil(width / 8);
  const OUT = { b1: w1, b3_reduce: r3, b3: w3, b5_reduce: r5, b5: w5, pool_proj: wp, stack: k };
  const IN = { b1: c, b3_reduce: c, b3: r3, b5_reduce: c, b5: r5, pool_proj: c, stack: c };
  const SIDE = { b3: 3, b5: 5 };

  const product = (unit, x, y, folded, epilogue) => ({
    ...shape, kind: PRODUCT, side: SIDE[unit] ?? 1, c_in: IN[unit], c_out: OUT[unit], ...ends(x, y), epilogue,
    w_offset: places[unit][folded ? "folded" : "plain"], w_stride: places[unit].stride,
    scale: places[unit].scale, shift: places[unit].shift, cut: OUT[unit],
  });
  const pooling = (x, y) => ({ ...shape, kind: POOL, c_out: c, ...ends(x, y) });
  const one = (kernel, x, y, job, groups) => ({ kernel, jobs: [job], groups, x: x.name, y: y.name });

  const conv = (unit, x, y, folded, epilogue) =>
    one("product", x, y, product(unit, x, y, folded, epilogue), tiles(OUT[unit]));
  const pool = (x, y) => one("pool", x, y, pooling(x, y), each(c));
  const x = view("x", c), y = view("y", total), p = view("pooled", c);
  const own = Object.fromEntries(Object.entries(OUT).map(([name, width]) => [name, view(name, width)]));
  return { c, w1, r3, w3, r5, w5, wp, k, total, shape, ends, each, tiles, OUT, view, x, y, p, own,
    product, pooling, one, conv, pool };
}

// {rung: [dispatch, …]}.
function ladder(...given) {
  const { c, w1, r3, w3, r5, w5, wp, k, total, shape, ends, each, tiles, OUT, view, x, y, p, own,
    product, pooling, one, conv, pool } = pieces(...given);
  const follower = (kernel, unit, x, y) =>
    one(kernel, x, y, product(unit, x, y, false, 0), each(OUT[unit]));
  const concat = (y, parts) => ({
    kernel: "concat", groups: each(total), y: y.name, parts: parts.map(([part]) => part.name),
    jobs: parts.map(([part, width]) => ({ ...shape, c_out: width, ...ends(part, y) })),
  });

  // A unit, rung by rung: three launches, two, one.
  const written = (unit, x, y) => [
    conv(unit, x, view("sum", OUT[unit]), false, 0),
    follower("norm", unit, view("sum", OUT[unit]), view("normed", OUT[unit])),
    follower("relu", unit, view("normed", OUT[unit]), y),
  ];
  const folded = (unit, x, y) => [
    conv(unit, x, view("sum", OUT[unit]), true, BIAS), follower("relu", unit, view("sum", OUT[unit]), y),
  ];
  const called = (unit, x, y) => [conv(unit, x, y, true, RELU)];

  // What follows the siblings, given where b1, r3 and r5 lie.
  const rest = (unit, b1, a3, a5) => [
    ...unit("b3", a3, own.b3), ...unit("b5", a5, own.b5), pool(x, p), ...unit("pool_proj", p, own.pool_proj),
    concat(y, [[b1, w1], [own.b3, w3], [own.b5, w5], [own.pool_proj, wp]]),
  ];
  const separate = (unit) => [
    ...unit("b1", x, own.b1), ...unit("b3_reduce", x, own.b3_reduce), ...unit("b5_reduce", x, own.b5_reduce),
    ...rest(unit, own.b1, own.b3_reduce, own.b5_reduce),
  ];
  const parts = (name) => [view(name, k), view(name, k, w1), view(name, k, w1 + r3)];
  const stacked = () => [
    conv("stack", x, view("stack", k), true, BIAS),
    ...["b1", "b3_reduce", "b5_reduce"].map((name, i) => follower("relu", name, parts("stack")[i], own[name])),
    ...rest(folded, own.b1, own.b3_reduce, own.b5_reduce),
  ];
  const hoisted = () => [
    conv("stack", x, view("stack", k), true, BIAS), follower("relu", "stack", own.stack, view("active", k)),
    ...rest(folded, ...parts("active")),
  ];
  const oneCall = () => [conv("stack", x, view("active", k), true, RELU), ...rest(called, ...parts("active"))];

  return Object.fromEntries([separate(written), separate(folded), stacked(), hoisted(), oneCall(),
    twoLaunches()].map((dispatches, i) => [RUNGS[i], dispatches]));

  function twoLaunches() {
    const wide = r3 + r5 + c, z = (offset) => view("scratch", wide, offset);
    const into = (place, width) => ({ name: "y", stride: total, offset: place, width });
    const route = (name, jobs) => {
      let until = 0;
      for (const job of jobs) {
        until += job.kind === PRODUCT ? tiles(job.c_out) : Math.ceil(each(job.c_out) / POOLED);
        job.until = until;
      }
      return { kernel: "routed", jobs, groups: until, x: name, y: "y", z: name === "x" ? "scratch" : "none" };
    };
    // The deepest product first: a long tile that began last would keep the GPU waiting.
    return [
      route("x", [
        { ...product("stack", x, into(0), true, RELU), cut: w1, z_offset: 0, z_stride: wide },
        { ...pooling(x, y), cut: 0, z_offset: r3 + r5, z_stride: wide },
      ]),
      route("scratch", [
        product("b5", z(r3), into(w1 + w3), true, RELU), product("b3", z(0), into(w1), true, RELU),
        product("pool_proj", z(r3 + r5), into(w1 + w3 + w5), true, RELU),
      ]),
    ];
  }
}

// How many vec4f each buffer needs that some dispatch names; "y" also for reading it back.
function buffersOf(rungs, batchPixels) {
  const needed = { none: 1 };
  const need = (name, vectors) => { needed[name] = Math.max(needed[name] ?? 0, vectors); };
  for (const { jobs, x, y, z, parts } of Object.values(rungs).flat()) {
    if (x) need(x, batchPixels * jobs[0].x_stride);
    need(y, batchPixels * jobs[0].y_stride);
    if (z) need(z, batchPixels * Math.max(jobs[0].z_stride ?? 0, 0) || 1);
    (parts ?? []).forEach((name, i) => need(name, batchPixels * jobs[i].x_stride));
  }
  return needed;
}

const LARGEST = 2048; // side of the largest product

// Bytes of the largest buffer.
function bytesOf(widths, size, batch) {
  const anywhere = Object.fromEntries([...UNITS, "stack"].map((name) => [name, {}]));
  const vectors = buffersOf(ladder(widths, size, batch, anywhere), batch * size * size);
  return Math.max(4 * LARGEST * LARGEST, 16 * Math.max(...Object.values(vectors)));
}

// A job table as it lies in a uniform.
function tableOf(jobs) {
  const words = new Uint32Array(4 * FIELDS.length); // at most four jobs
  jobs.forEach((job, i) => words.set(FIELDS.map((field) => job[field] ?? 0), i * FIELDS.length));
  return words;
}

// Additions and multiplications of the module's six convolutions.
const flopsOf = (widths, size, batch) => Object.values(shapes(widths))
  .reduce((sum, [c, k, side]) => sum + 2 * c * k * side * side * size * size * batch, 0);

// One large 1×1 product, n × n × n, by the same kernel.
const square = (n) => ({
  kernel: "product", x: "a", y: "c", groups: (n / 32) * (n / 32),
  jobs: [{ kind: PRODUCT, pixels: n, height: 1, width: n, side: 1, c_in: n / 4, c_out: n / 4, x_stride: n / 4,
    w_stride: n / 4, y_stride: n / 4 }],
});
