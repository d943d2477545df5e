// What the two labs do on the GPU: verify, count, then time. Neither knows what the page looks like.

const TURN_MS = 50;
// How long the rounds may take together, and a whole run, ms; how many rounds there are, at least
// (if the run's time allows; the record says how many there were) and at most; how long a turn
// shall be; and the turns before the first.
const PACE = {
  quick: { budget: 4000, limit: 240000, least: 2, most: 2, turn: 5, warmUp: 0 },
  minute: { budget: 25000, limit: 60000, least: 5, most: 20, turn: TURN_MS, warmUp: 2 },
  minutes: { budget: 150000, limit: 240000, least: 5, most: 100, turn: TURN_MS, warmUp: 2 },
};

// A turn: one call more, which is not timed, then `calls`. Both clocks, µs a call; a submit for
// each `call`, unless they are recorded in one. encode(pass) adds one call's dispatches.
async function turn(gpu, encode, calls) {
  const encoder = gpu.device.createCommandEncoder();
  const stamped = gpu.stamps && { querySet: gpu.stamps, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 };
  for (const [count, timestampWrites] of [[1], [calls, stamped]]) {
    const pass = encoder.beginComputePass(timestampWrites ? { timestampWrites } : {});
    for (let i = 0; i < count; i++) encode(pass);
    pass.end();
  }
  const commands = encoder.finish(), begin = performance.now();
  gpu.device.queue.submit([commands]);
  await gpu.done();
  const ms = performance.now() - begin, ns = await gpu.elapsed();
  return { ms, wall: (1000 * ms) / (calls + 1), device: ns && ns / 1000 / calls };
}

// As long as a turn, but handed over piece by piece: submits `calls` programs of n dispatches, in
// one submit each or in a submit for each dispatch.
async function handedOver(gpu, tick, n, apart, calls) {
  const begin = performance.now();
  for (let call = 0; call <= calls; call++) {
    for (let i = 0; i < (apart ? n : 1); i++) {
      const encoder = gpu.device.createCommandEncoder(), timestampWrites = { querySet: gpu.stamps };
      const first = call === 1 && i === 0, last = call === calls && (!apart || i === n - 1);
      if (first) timestampWrites.beginningOfPassWriteIndex = 0;
      if (last) timestampWrites.endOfPassWriteIndex = 1;
      const pass = encoder.beginComputePass(gpu.stamps && (first || last) ? { timestampWrites } : {});
      for (let j = 0; j < (apart ? 1 : n); j++) tick(pass);
      pass.end();
      gpu.device.queue.submit([encoder.finish()]);
    }
  }
  await gpu.done();
  const ms = performance.now() - begin, ns = await gpu.elapsed();
  return { ms, wall: (1000 * ms) / (calls + 1), device: ns && ns / 1000 / calls };
}

// Turns in rounds for as long as the pace allows; a turn during which the tab was hidden is taken
// again. Returns result({arm: [{wall, device}, …]}); a run that is cancelled keeps that of its
// complete rounds.
async function rounds(gpu, arms, pace, say, result = (samples) => samples) {
  const names = Object.keys(arms), { run } = gpu, began = run.elapsed();
  let hidden = false;
  const look = () => { hidden ||= document.hidden; };
  document.addEventListener("visibilitychange", look);
  const measure = async (name) => {
    for (;;) {
      await run.breathe(say);
      hidden = document.hidden;
      const sample = await arms[name]();
      if (!hidden) return sample;
    }
  };
  try {
    return result(await race(names, measure, (round, samples) => {
      const taken = run.elapsed() - began, left = run.due - run.elapsed();
      const whole = Math.min(Math.max(pace.budget, (pace.least / round) * taken), (pace.most / round) * taken);
      const end = round && Math.min(whole - taken, left);
      say(`Measuring, round ${round + 1}${end > 0 ? `, about ${duration(end)} left` : ""}`,
        taken / pace.budget, round / pace.most);
      if (round > 1) run.kept = () => result(all(names, (name) => samples[name].slice(0, round)));
      if (round > 0 && left < 1.5 * taken / round + 1000) return false;
      return round < pace.most && (round < pace.least || taken < pace.budget);
    }));
  } finally {
    document.removeEventListener("visibilitychange", look);
  }
}

// Turns that are not kept: so many of each arm, or as many as 2 s allow. Returns how many.
async function warmedUp(gpu, arms, most) {
  const began = gpu.run.elapsed();
  for (let i = 0; i < most; i++) {
    for (const turn of Object.values(arms)) {
      await gpu.run.breathe();
      if (gpu.run.elapsed() - began > 2000) return i;
      await turn();
    }
  }
  return most;
}

// By which clock the results are shown: the GPU's own if it worked in every turn.
const clocks = (samples) =>
  (Object.values(samples).flat().every(({ device }) => device > 0) ? ["device", "wall"] : ["wall"]);
const rounded = (us) => Math.max(Number(us.toFixed(3)), 0.001);

// ---- The ladder ----

// {entry point: pipeline} of one of the files that have bindings; what a tile is goes before it.
function compiled(gpu, wgsl, name, entries) {
  const bindings = [...wgsl[name].matchAll(/var<(uniform|storage, read_write|storage, read)>/g)];
  const kinds = {
    uniform: "uniform", "storage, read": "read-only-storage", "storage, read_write": "storage",
  };
  const tile = name === "concat" ? "" : wgsl.product + wgsl.pool;
  const layout = bindings.map(([, kind]) => kinds[kind]);
  return gpu.pipelines(`${name}.wgsl`, wgsl.job + tile + wgsl[name], entries, layout);
}

const LADDER = { single: ["product", "pool", "norm", "relu"], routed: ["routed"], concat: ["concat"] };

// All that the dispatches of listed(widths, size, batch, places) need, from the kernels in `files`.
async function prepared(gpu, { widths, size, batch }, wgsl, say, files = LADDER, listed = ladder) {
  say("Compiling the kernels");
  const kernels = {};
  for (const [name, entries] of Object.entries(files)) {
    Object.assign(kernels, await compiled(gpu, wgsl, name, entries));
  }
  const units = parameters(widths), { values, places } = packed(units), x = images(widths[0], size, batch);
  const rungs = listed(widths, size, batch, places), vectors = buffersOf(rungs, batch * size * size);
  const buffers = Object.fromEntries(Object.entries(vectors).map(([name, size]) => [name, gpu.buffer(16 * size)]));
  gpu.device.queue.writeBuffer(buffers.x, 0, Float32Array.from(x));
  buffers.weights = gpu.filled(values);
  return { kernels, rungs, vectors, buffers, units, x };
}

// encode(pass) of one dispatch.
function encoder(gpu, { kernels, buffers }, { kernel, jobs, groups, x, y, z, parts }) {
  const named = parts ? [...parts, y] : [x, "weights", y, ...(z ? [z] : [])];
  const table = gpu.filled(tableOf(jobs), GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST);
  const bindings = gpu.bound(kernels[kernel], [table, ...named.map((name) => buffers[name])]);
  return (pass) => gpu.launch(pass, kernels[kernel], bindings, groups);
}

// {rung: encode(pass)}.
const encoders = (gpu, made) => all(RUNGS, (rung) => {
  const ready = made.rungs[rung].map((dispatch) => encoder(gpu, made, dispatch));
  return (pass) => ready.forEach((encode) => encode(pass));
});

// {rung: () => hands it over, in one pass}.
const handing = (gpu, encode) => all(RUNGS, (rung) => () => {
  const commands = gpu.device.createCommandEncoder(), pass = commands.beginComputePass();
  encode[rung](pass);
  pass.end();
  gpu.device.queue.submit([commands.finish()]);
});

// Hands each arm over once, into memory full of NaN, and compares every entry. Returns counts.
async function verified(gpu, { rungs, vectors, buffers }, arms, expected, say) {
  const names = Object.keys(arms);
  const found = { entries: 0, differ: 0, launches: {}, wrong: [], ms: 0 }; // ms: on the GPU, together
  const nan = new Float32Array(4 * Math.max(...Object.values(vectors))).fill(NaN);
  for (const [place, rung] of names.entries()) {
    say(`Checking ${place + 1} of ${names.length}, ${rung}`, place / names.length);
    await gpu.run.breathe(say);
    const named = new Set(rungs[rung].flatMap(({ x, y, z, parts }) => [x, y, z, ...(parts ?? [])]));
    for (const [name, count] of Object.entries(vectors)) {
      if (name !== "x" && named.has(name)) gpu.device.queue.writeBuffer(buffers[name], 0, nan, 0, 4 * count);
    }
    const before = gpu.launches, began = gpu.run.elapsed();
    arms[rung]();
    await gpu.done();
    found.ms += gpu.run.elapsed() - began;
    found.launches[rung] = gpu.launches - before;
    const actual = new Float32Array(await gpu.read(buffers.y, 4 * expected.length));
    const differ = differing(actual, expected);
    if (differ) found.wrong.push(rung);
    found.entries += expected.length;
    found.differ += differ;
  }
  return found;
}

// µs of one large product, a few times: the largest that still takes little time.
async function largeProduct(gpu, kernel, quick) {
  for (let n = 256; ; n *= 2) {
    const numbers = Float32Array.from(draw(99, n * n, -4, 4)); // zeros would cost a GPU less power
    const a = gpu.filled(numbers), weights = gpu.filled(numbers), c = gpu.buffer(4 * n * n);
    const table = gpu.filled(tableOf(square(n).jobs), GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST);
    const bindings = gpu.bound(kernel, [table, a, weights, c]);
    const encode = (pass) => gpu.launch(pass, kernel, bindings, square(n).groups);
    const taken = [];
    for (let i = 0; i < 3; i++) {
      await gpu.run.breathe();
      taken.push(await turn(gpu, encode, 1));
    }
    const ms = Math.min(...taken.map(({ ms }) => ms));
    if (ms > 4 || n === LARGEST || quick) {
      const calls = Math.max(1, Math.min(Math.round(20 / ms), 100)), samples = [];
      for (let i = 0; i < (quick ? 1 : 5); i++) samples.push(await turn(gpu, encode, calls));
      [a, c, weights, table].forEach((buffer) => buffer.destroy());
      return { n, calls, samples };
    }
    [a, c, weights, table].forEach((buffer) => buffer.destroy());
  }
}

// A round: for each rung one call more, which is not timed, and at least one.
const ROUND = 2;

// ms that so many operations take at the rate of the large product.
function expectedMs(flops, { n, samples }) {
  const [, us] = quartiles(samples.map(({ wall }) => wall));
  return (us / 1000) * (flops / (2 * n ** 3));
}

// So many calls of `ms` ms each, `longest` of them in one wait.
async function affordable(run, ms, calls, longest) {
  run.patience = Math.max(PATIENCE_S, (4 * longest * ms) / 1000);
  await run.afford(calls * ms);
}

// The module's result, in float64, if it is what the notebook had.
async function wanted(run, { module, batch }, setup, { units, x }, say) {
  const { widths, size } = setup.modules[module];
  say("Computing the expected result here, in float64");
  const expected = await reference(widths, size, batch, units, x, () => run.breathe(say));
  const here = digest(expected.subarray(0, expected.length / batch)), there = setup.digests[module];
  if (here !== there) {
    throw new Ended("failed",
      `This page expects ${here}, and the notebook's PyTorch had ${there}: nothing can be checked.`);
  }
  return expected;
}

async function ladderLab(run, choice, setup, say) {
  const { widths, size } = setup.modules[choice.module], batch = choice.batch, pace = PACE[choice.pace];
  const gpu = await open(run, bytesOf(widths, size, batch));
  say(null, 0, 0, gpu.machine);
  try {
    const made = await prepared(gpu, { widths, size, batch }, setup.wgsl, say), encode = encoders(gpu, made);
    say("Measuring what one large product reaches");
    const large = await largeProduct(gpu, made.kernels.product, choice.pace === "quick");
    // Each rung once for the check, and two rounds.
    await affordable(run, expectedMs(flopsOf(widths, size, batch), large), RUNGS.length * (1 + 2 * ROUND), ROUND);
    const expected = await wanted(run, choice, setup, made, say);
    const found = await verified(gpu, made, handing(gpu, encode), expected, say);
    if (found.differ) return { ...found, machine: gpu.machine };
    await run.afford(ROUND * 2 * found.ms);
    say("Warming up");
    const slow = found.ms > 10 * RUNGS.length * pace.turn; // and has warmed up while it was checked
    const last = async (calls) => (await turn(gpu, encode["two launches"], calls)).ms;
    const calls = slow ? 1 : await calibrate(last, pace.turn, 2000);
    const arms = Object.fromEntries(RUNGS.map((rung) => [rung, () => turn(gpu, encode[rung], calls)]));
    const warmUp = await warmedUp(gpu, arms, slow ? 0 : pace.warmUp);
    return await rounds(gpu, arms, pace, say, (samples) =>
      ({ ...found, machine: gpu.machine, large, samples, calls, warmUp }));
  } finally {
    gpu.close();
  }
}

// ---- What a launch costs ----

const WAYS = ["one submit", "a submit each"];

async function launchesLab(run, choice, setup, say) {
  const gpu = await open(run, 256), ns = choice.ns, pace = PACE[choice.pace];
  say(null, 0, 0, gpu.machine);
  try {
    say("Compiling the kernel");
    const { tick } = await gpu.pipelines("tick.wgsl", setup.wgsl.tick, ["tick"], ["storage"]);
    const y = gpu.buffer(256), bindings = gpu.bound(tick, [y]);
    const launch = (pass) => gpu.launch(pass, tick, bindings, 1);
    const found = { entries: 0, differ: 0, launches: {}, wrong: [] };
    const calls = {}, arms = {};
    for (const [place, n] of ns.entries()) {
      for (const way of WAYS) {
        say(`Checking ${n} launches, ${way}`, place / ns.length);
        await run.breathe(say);
        await ticked(gpu, launch, y, n, way, found);
        if (found.differ) continue;
        const once = (count) => handedOver(gpu, launch, n, way === WAYS[1], count);
        const ms = async (count) => (await once(count)).ms;
        calls[`${way} ${n}`] = await calibrate(ms, pace.turn, Math.ceil(20000 / n));
        arms[`${way} ${n}`] = () => once(calls[`${way} ${n}`]);
      }
    }
    if (found.differ) return { ...found, machine: gpu.machine };
    const warmUp = await warmedUp(gpu, arms, pace.warmUp);
    const large = nameless(gpu.machine) ? await unnamedRate(gpu, setup.wgsl, choice.pace === "quick") : null;
    return await rounds(gpu, arms, pace, say, (samples) =>
      ({ ...found, machine: gpu.machine, large, samples, calls, warmUp }));
  } finally {
    gpu.close();
  }
}

// An adapter without a name is told by its rate: it may be software.
async function unnamedRate(gpu, wgsl, quick) {
  const { product } = await compiled(gpu, wgsl, "single", ["product"]);
  return largeProduct(gpu, product, quick);
}

// From zero, n launches: every number must be n.
async function ticked(gpu, launch, y, n, way, found) {
  gpu.device.queue.writeBuffer(y, 0, new Float32Array(64));
  const before = gpu.launches, apart = way === WAYS[1];
  for (let i = 0; i < (apart ? n : 1); i++) {
    const encoder = gpu.device.createCommandEncoder(), pass = encoder.beginComputePass();
    for (let j = 0; j < (apart ? 1 : n); j++) launch(pass);
    pass.end();
    gpu.device.queue.submit([encoder.finish()]);
  }
  found.launches[`${way} ${n}`] = gpu.launches - before;
  const differ = differing(new Float32Array(await gpu.read(y, 256)), new Float32Array(64).fill(n));
  found.entries += 64;
  found.differ += differ;
  if (differ) found.wrong.push(`${n} launches, ${way}`);
}
