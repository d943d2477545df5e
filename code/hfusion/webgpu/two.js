// Two launches beside one dispatch a convolution, handed over branch by branch or together.

const ARMS = ["a submit per branch", "a pass per dispatch", "one pass", "two launches"];
const TWO = ARMS[ARMS.length - 1];
const MOST = 20; // modules in a row
const MARKS = 64; // turns take so many of the GPU's times, at most
const WRONG_RUNS = 5;

// {list: [dispatch, …]}: each branch with a dispatch for each of its steps, that writes to its place;
// two launches; and the branch of the 3×3 in one dispatch, which is wrong.
function twoLists(...given) {
  const { c, w1, r3, w3, w5, tiles, view, x, y, p, own, product, conv, pool } = pieces(...given);
  const into = (offset) => ({ ...y, offset }), step = (unit, x, y) => conv(unit, x, y, true, RELU);
  const both = view("both", c + r3), reduced = view("both", c + r3, c);
  return {
    b1: [step("b1", x, into(0))],
    b3: [step("b3_reduce", x, own.b3_reduce), step("b3", own.b3_reduce, into(w1))],
    b5: [step("b5_reduce", x, own.b5_reduce), step("b5", own.b5_reduce, into(w1 + w3))],
    pooled: [pool(x, p), step("pool_proj", p, into(w1 + w3 + w5))],
    [TWO]: ladder(...given)["two launches"],
    wrong: [{
      kernel: "unordered", groups: Math.max(tiles(r3), tiles(w3)), x: "both", y: "y",
      jobs: [
        { ...product("b3_reduce", both, y, true, RELU), until: tiles(r3), cut: 0, z_offset: c,
          z_stride: c + r3 },
        { ...product("b3", reduced, into(w1), true, RELU), until: tiles(w3) },
      ],
    }],
  };
}

// Each arm's submits; a submit's passes; a pass's dispatches.
function submitsOf({ b1, b3, b5, pooled, ...rest }) {
  const branches = [b1, b3, b5, pooled];
  return Object.fromEntries([
    branches.map((branch) => [branch]), [branches.flat().map((one) => [one])], [[branches.flat()]],
    [[rest[TWO]]],
  ].map((submits, i) => [ARMS[i], submits]));
}

// Hands one module over. mark: [first, last], the numbers under which the GPU notes when it began
// and when it was done, if it shall. Counts what there was.
function handOver(gpu, submits, querySet, [first, last] = []) {
  const before = gpu.launches, counted = { submits: 0, passes: 0 };
  submits.forEach((passes, i) => {
    const commands = gpu.device.createCommandEncoder();
    passes.forEach((encode, j) => {
      const begins = i + j === 0 && first !== undefined;
      const ends = last !== undefined && i === submits.length - 1 && j === passes.length - 1;
      const timestampWrites = { querySet, ...(begins && { beginningOfPassWriteIndex: first }),
        ...(ends && { endOfPassWriteIndex: last }) };
      const pass = commands.beginComputePass(begins || ends ? { timestampWrites } : {});
      encode.forEach((one) => one(pass));
      pass.end();
      counted.passes++;
    });
    gpu.device.queue.submit([commands.finish()]);
    counted.submits++;
  });
  return { ...counted, dispatches: gpu.launches - before };
}

// ns, Σ (end − begin); null if the clock stood still or ran backwards. It may move in steps of 100 µs, in
// which a single module begins and ends; over many the steps cancel.
function spent(times) {
  const each = Array.from({ length: times.length / 2 }, (_, i) => Number(times[2 * i + 1] - times[2 * i]));
  return each.every((ns) => ns >= 0) && each.reduce((sum, ns) => sum + ns, 0) || null;
}

// The GPU's clock: where its times are noted, and what the first n turns took.
function stopwatch(gpu) {
  if (!gpu.stamps) return { read: async () => null };
  const querySet = gpu.device.createQuerySet({ type: "timestamp", count: 2 * MARKS });
  const resolved = gpu.buffer(16 * MARKS, GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC);
  const read = async (n) => {
    const commands = gpu.device.createCommandEncoder();
    commands.resolveQuerySet(querySet, 0, 2 * n, resolved, 0);
    gpu.device.queue.submit([commands.finish()]);
    return spent(new BigUint64Array(await gpu.read(resolved, 16 * n)));
  };
  return { querySet, read };
}

// A turn: one untimed module, then `times` times: n modules in a row are handed over and waited for.
// µs per module by both clocks: the page's with handing over and waiting, the GPU's from the
// beginning of the first pass to the end of the last.
async function handed(gpu, watch, submits, n, times) {
  let begin;
  for (let time = -1; time < times; time++) {
    if (time === 0) begin = performance.now();
    for (let i = 0; i < (time < 0 ? 1 : n); i++) {
      const marked = watch.querySet && time >= 0;
      handOver(gpu, submits, watch.querySet, marked
        ? [i === 0 ? 2 * time : undefined, i === n - 1 ? 2 * time + 1 : undefined] : []);
    }
    await gpu.done();
  }
  const ms = performance.now() - begin, ns = await watch.read(times);
  return { ms, wall: (1000 * ms) / (times * n), device: ns && ns / 1000 / (times * n) };
}

// The wrong way, a few times: how many entries of the 3×3's branch were wrong each time.
async function wrongWay(gpu, { kernels, rungs, vectors, buffers, x }, widths, expected, say) {
  const encode = encoder(gpu, { kernels, buffers }, rungs.wrong[0]), [c, w1, r3, w3] = widths;
  const pixels = x.length / c, total = expected.length / pixels, differ = [];
  const branch = (y) => Float32Array.from({ length: pixels * w3 },
    (_, i) => y[Math.floor(i / w3) * total + w1 + (i % w3)]);
  const nan = new Float32Array(4 * Math.max(vectors.y, vectors.both)).fill(NaN);
  const both = nan.slice(0, 4 * vectors.both); // the input's channels of each pixel, then NaN
  for (let p = 0; p < pixels; p++) both.set(x.subarray(p * c, (p + 1) * c), p * (c + r3));
  for (let i = 0; i < WRONG_RUNS; i++) {
    say("Looking at the wrong way, which is not timed");
    await gpu.run.breathe(say);
    gpu.device.queue.writeBuffer(buffers.both, 0, both);
    gpu.device.queue.writeBuffer(buffers.y, 0, nan, 0, 4 * vectors.y);
    handOver(gpu, [[[encode]]]);
    await gpu.done();
    const y = new Float32Array(await gpu.read(buffers.y, 4 * expected.length));
    differ.push(differing(branch(y), branch(expected)));
  }
  return { entries: pixels * w3, differ };
}

// How many modules are handed over before the page waits: one, and many, which are fewer where they
// would take longer than a second.
const rowsFor = (ms) => [1, Math.max(2, Math.min(MOST, Math.floor(1000 / ms)))];
// How many the check and two rounds hand over; each turn has one that is not timed.
const modulesOf = (inARow) => ARMS.length * (1 + ROUND * inARow.reduce((sum, n) => sum + 1 + n, 0));
const armOf = (arm, n) => `${arm}, ${n}`;

async function twoLab(run, choice, setup, say) {
  const shape = { ...setup.modules[choice.module], batch: choice.batch }, { widths, size, batch } = shape;
  const pace = PACE[choice.pace], gpu = await open(run, bytesOf(widths, size, batch));
  say(null, 0, 0, gpu.machine);
  try {
    const files = { single: ["product", "pool"], routed: ["routed"], unordered: ["unordered"] };
    const made = await prepared(gpu, shape, setup.wgsl, say, files, twoLists);
    say("Measuring what one large product reaches");
    const large = await largeProduct(gpu, made.kernels.product, choice.pace === "quick");
    const ms = expectedMs(flopsOf(widths, size, batch), large), guess = rowsFor(ms);
    await affordable(run, ms, modulesOf(guess), guess[1]);
    const expected = await wanted(run, choice, setup, made, say);
    const submits = submitsOf(made.rungs), counted = {};
    const encoded = all(ARMS, (arm) => submits[arm].map((passes) =>
      passes.map((dispatches) => dispatches.map((one) => encoder(gpu, made, one)))));
    const checks = all(ARMS, (arm) => () => { counted[arm] = handOver(gpu, encoded[arm]); });
    const listed = { ...made, rungs: all(ARMS, (arm) => submits[arm].flat(2)) };
    const found = await verified(gpu, listed, checks, expected, say);
    if (found.differ) return { ...found, machine: gpu.machine };
    const unordered = await wrongWay(gpu, made, widths, expected, say);
    const each = found.ms / ARMS.length, inARow = rowsFor(each);
    await run.afford((modulesOf(inARow) - ARMS.length) * each);
    say("Warming up");
    const watch = stopwatch(gpu), slow = found.ms > 10 * ARMS.length * pace.turn, calls = {}, arms = {};
    for (const n of inARow) {
      const last = async (times) => (await handed(gpu, watch, encoded[TWO], n, times)).ms;
      const times = slow ? 1 : await calibrate(last, pace.turn, MARKS);
      calls[n] = times * n;
      for (const arm of ARMS) arms[armOf(arm, n)] = () => handed(gpu, watch, encoded[arm], n, times);
    }
    const warmUp = await warmedUp(gpu, arms, slow ? 0 : pace.warmUp);
    const protocol = {
      turn: "one module that is not timed, then the case's calls, in_a_row of them before each wait",
      handed_over: counted, unordered,
    };
    return await rounds(gpu, arms, pace, say, (samples) =>
      ({ ...found, machine: gpu.machine, large, samples, calls, warmUp, protocol, inARow }));
  } finally {
    gpu.close();
  }
}

// A case for each clock, and for each number of modules in a row.
const twoCases = ({ module, batch }, { samples, calls, launches, inARow }) => clocks(samples).flatMap((clock) =>
  inARow.map((n) => caseOf({ module, batch, in_a_row: n, clock },
    all(ARMS, (arm) => by(clock, samples[armOf(arm, n)])), calls[n], launches)));

// A sentence on how a rival did: quartiles of its time by that of two launches.
function verdict(rival, [low, middle, high]) {
  const within = (low, high) => `(${range([low, 0, high], ratio)}).`;
  const times = `${ratio(middle)} times as long as two launches`;
  if (low > 1) return `“${rival}” takes ${times} ${within(low, high)}`;
  if (high < 1) {
    return `Two launches lose to “${rival}”: they take ${ratio(1 / middle)} times as long `
      + within(1 / high, 1 / low);
  }
  return `Between “${rival}” and two launches the rounds do not decide ${within(low, high)}`;
}

const often = (n) => (n === 1 ? "One module, then a wait" : `${count(n)} modules in a row, then a wait`);

// One way of calling: sentences, bars and a table. wall: the same by the page's clock, if the GPU has
// one of its own.
function called({ samples, parameters: { in_a_row: n } }, wall, names, doubt) {
  const times = all(names, (name) => quartiles(samples[name]));
  const against = all(names, (name) => gains(samples[name], samples[TWO]));
  const rows = names.map((name) => [name, spread(times[name]),
    ...(wall ? [number(quartiles(wall.samples[name])[1])] : []),
    ...(doubt ? [] : [name === TWO ? "1" : spread(against[name], ratio)])]);
  const heads = ["handed over as", "µs", ...(wall ? ["page's clock"] : []),
    ...(doubt ? [] : ["time / two launches"])];
  const numbers = table(`${often(n)}: µs per module, quartiles in brackets`, heads, rows);
  if (doubt) return [numbers];
  const said = names.filter((name) => name !== TWO).map((name) => verdict(name, against[name])).join(" ");
  return [element("p", {}, element("strong", {}, `${often(n)}. `), said),
    bars(names.map((name) => [name, times[name]])), numbers];
}

// What came of the wrong way.
function unorderedSaid({ entries, differ }) {
  const wrong = differ.filter((n) => n > 0).length;
  const found = wrong
    ? `In ${wrong} of ${differ.length} runs entries were wrong: ${differ.map(count).join(", ")} of ${count(entries)}.`
    : `In ${differ.length} runs all ${count(entries)} entries came out right, by luck.`;
  return element("p", { "data-lab-unordered": differ.join(" ") },
    element("strong", {}, "The wrong way, never timed. "),
    "One dispatch did the 3×3 branch's 1×1 and then its 3×3, which reads what other workgroups write in the "
    + `same dispatch. ${found} WebGPU orders dispatches, not the workgroups of one.`);
}

function twoView(record) {
  const cases = counting(record), [{ parameters: { module, batch, clock }, samples }] = cases;
  const { handed_over: handed, unordered } = record.protocol;
  const names = Object.keys(samples), doubt = doubtOf(record);
  const rows = names.map((name) => [name, ...["submits", "passes", "dispatches"].map((what) =>
    count(handed[name][what]))]);
  const counts = table(`What is handed over for one module ${module}, batch ${batch}`,
    ["handed over as", "submits", "passes", "dispatches"], rows);
  const wallOf = ({ parameters }) => (clock === "device" ? record.cases.find((one) =>
    one.parameters.clock === "wall" && one.parameters.in_a_row === parameters.in_a_row) : undefined);
  const parts = cases.flatMap((one) => called(one, wallOf(one), names, doubt));
  return { doubt, clock, said: [], parts: [counts, ...parts, unorderedSaid(unordered)] };
}

LABS.two = {
  title: "Two launches, on your GPU", run: twoLab, cases: twoCases, view: twoView,
  question: "Are two launches faster than one per convolution on a reader's own GPU?",
};
