// When does stacking pay on the reader's GPU? Its ceilings, then three siblings three ways, case by
// case: each way is verified, then timed.

// Rounds and a turn, ms, of one case; see PACE for a whole run.
const SWEEP = {
  quick: { least: 2, most: 2, turn: 5 },
  minute: { least: 5, most: 15, turn: 20 },
  minutes: { least: 7, most: 25, turn: 20 },
};
const COPIED_BYTES = 60 * 2 ** 20; // of the large copy, if the device has room: more than most caches hold
const TICKS = { quick: [20, 40, 80], whole: [100, 400, 1600] }; // launches in a chain
const SHARE = 0.9; // of a run's limit; what does not fit is left out

async function stageKernels(gpu, wgsl) {
  return {
    ...await compiled(gpu, { ...wgsl, single: wgsl.single + wgsl.copy }, "single", ["product", "copy"]),
    ...await gpu.pipelines("tick.wgsl", wgsl.tick, ["tick"], ["storage"]),
  };
}

// ---- The ceilings ----

// A launch: ticks in one submit, so many and so many more. A byte: a large copy. Arithmetic: one
// large product by the kernel that the cases use. In the form of a record's protocol.
async function ceilingsOf(gpu, kernels, quick, say) {
  say("Measuring this GPU's ceilings: a large product");
  if (!quick) await largeProduct(gpu, kernels.product, true); // wakes the GPU up
  const large = await largeProduct(gpu, kernels.product, quick);
  say("Measuring this GPU's ceilings: launches, and a large copy");
  const y = gpu.buffer(256), bindings = gpu.bound(kernels.tick, [y]);
  const tick = (pass) => gpu.launch(pass, kernels.tick, bindings, 1);
  const ns = TICKS[quick ? "quick" : "whole"];
  const copying = await largeCopy(gpu, kernels, quick);
  const arms = { copy: () => turn(gpu, copying.encode, copying.calls) };
  for (const n of ns) arms[n] = () => handedOver(gpu, tick, n, false, 1);
  let samples;
  const keep = (taken) => { samples = taken; return null; }; // nothing yet that could be shown
  await rounds(gpu, arms, { ...SWEEP[quick ? "quick" : "minute"], most: quick ? 2 : 9, budget: 2000 },
    quiet(say), keep);
  [y, ...copying.buffers].forEach((buffer) => buffer.destroy());
  const known = clocks({ ...samples, large: large.samples });
  const times = (taken) => all(known, (clock) => by(clock, taken));
  return {
    large_product: { n: large.n, calls: large.calls, ...times(large.samples) },
    large_copy: { bytes: copying.bytes, calls: copying.calls, ...times(samples.copy) },
    ticks: { n: ns, ...all(known, (clock) => ns.map((n) => by(clock, samples[n]))) },
  };
}

// Lets through what has no progress to tell: that the page is out of sight.
const quiet = (say) => (text, ...shares) => { if (!shares.length) say(text); };

async function largeCopy(gpu, kernels, quick) {
  const bytes = Math.min(quick ? 2 ** 22 : COPIED_BYTES, roomOf(gpu)), pixels = Math.floor(bytes / 1024);
  const buffers = { x: gpu.buffer(1024 * pixels), y: gpu.buffer(1024 * pixels), weights: gpu.buffer(256) };
  const jobs = [{ pixels, c_out: 64, x_stride: 64, y_stride: 64 }];
  const encode = encoder(gpu, { kernels, buffers }, { kernel: "copy", jobs, groups: pixels, x: "x", y: "y" });
  const some = Float32Array.from(draw(98, 256 * Math.min(pixels, 1024), -4, 4)); // zeros might be compressed
  for (let at = 0; at + some.byteLength <= 1024 * pixels; at += some.byteLength) {
    gpu.device.queue.writeBuffer(buffers.x, at, some);
  }
  const { ms } = await turn(gpu, encode, 1);
  const calls = Math.min(Math.max(Math.round(20 / ms), 1), 50);
  return { bytes: 1024 * pixels, calls, encode, buffers: Object.values(buffers) };
}

const roomOf = ({ device: { limits } }) => Math.min(limits.maxBufferSize, limits.maxStorageBufferBindingSize);

// What cost.js wants to know of a device. `protocol`: of a record, or of one to be. In one submit
// the page hands over all launches at once: one more costs what the GPU, or the browser, needs for it.
function limitsOf({ large_product, large_copy, ticks }, clock) {
  const middle = (times) => quartiles(times[clock] ?? times.wall)[1] * 1e-6;
  const launch_s = Math.max(lines(ticks.n, ticks[clock] ?? ticks.wall).b[1], 0.001) * 1e-6;
  return {
    flops_per_s: (2 * large_product.n ** 3) / middle(large_product),
    bytes_per_s: (2 * large_copy.bytes) / middle(large_copy), launch_s, kernel_s: launch_s, overlaps: true,
  };
}

// To other tools on the page.
function tellCeilings({ machine, protocol }, error) {
  const device = `${machine.device}${machine.software ? ", software" : ""}`;
  const limits = limitsOf(protocol, protocol.large_product.device ? "device" : "wall");
  document.dispatchEvent(new CustomEvent("fs-ceilings", { detail: { device, ...limits, error } }));
}

// ---- One case ----

// Its buffers, filled, its ways, and what they must give.
async function stageMade(gpu, kernels, one, setup, say) {
  const widths = setup.siblings[one.row], positions = positionsOf(one), stack = stackOf(widths);
  const few = Float32Array.from(images(widths[0], one.side, Math.min(one.batch, IMAGES)));
  const expected = await stageExpected(widths, stack, few, () => gpu.run.breathe(say));
  const here = digest(expected.subarray(0, expected.length / Math.min(one.batch, IMAGES)));
  const there = setup.digests[`${one.row} ${one.side}`];
  if (here !== there) {
    throw new Ended("failed",
      `This page expects ${here}, and the notebook's PyTorch had ${there}: nothing can be checked.`);
  }
  const floats = stageBuffers(widths, positions);
  const buffers = Object.fromEntries(Object.entries(floats).map(([name, size]) => [name, gpu.buffer(4 * size)]));
  buffers.weights = gpu.filled(stack);
  const each = widths[0] * one.side ** 2;
  for (let n = 0; n < one.batch; n++) {
    gpu.device.queue.writeBuffer(buffers.x, 4 * n * each, few, (n * each) % few.length, each);
  }
  const programs = Object.entries(stagePrograms(widths, positions)).map(([way, dispatches]) => {
    const ready = dispatches.map((dispatch) => encoder(gpu, { kernels, buffers }, dispatch));
    return [way, (pass) => ready.forEach((encode) => encode(pass))];
  });
  return { widths, positions, expected, floats, buffers, encode: Object.fromEntries(programs) };
}

// Each way once, into memory full of NaN; every entry of its result is compared.
async function stageVerified(gpu, one, { widths, positions, expected, floats, buffers, encode }, found) {
  const [, ...sizes] = widths, k = sumOf(sizes), launches = {};
  const outputs = Object.keys(floats).filter((name) => name !== "x");
  const nan = new Float32Array(Math.max(...outputs.map((name) => floats[name]))).fill(NaN);
  for (const way of STAGE) {
    await gpu.run.breathe();
    for (const name of outputs) gpu.device.queue.writeBuffer(buffers[name], 0, nan, 0, floats[name]);
    const before = gpu.launches, commands = gpu.device.createCommandEncoder(), pass = commands.beginComputePass();
    encode[way](pass);
    pass.end();
    gpu.device.queue.submit([commands.finish()]);
    launches[way] = gpu.launches - before;
    const parts = way === "stacked" ? [["stack", 0, k]]
      : sizes.map((size, i) => [`own ${i}`, sumOf(sizes.slice(0, i)), size]);
    let differ = 0;
    for (const [name, begin, width] of parts) {
      const actual = new Float32Array(await gpu.read(buffers[name], 4 * floats[name]));
      differ += differingColumns(actual, expected, [begin, width, k], positions);
    }
    found.entries += positions * k;
    found.differ += differ;
    if (differ) found.wrong.push(`${named(one)}, ${way}`);
  }
  return launches;
}

const freed = ({ buffers }) => Object.values(buffers).forEach((buffer) => buffer.destroy());

// ---- The sweep ----

// What a case takes, ms, at the rate of the large product: three ways, each checked once, then two
// rounds of two calls, and the search for how many calls make a turn.
function caseMs(widths, one, { large_product: { n, wall } }) {
  const ms = (quartiles(wall)[1] / 1000) * (stageFlops(widths, one) / (2 * n ** 3));
  return 17 * ms + 200;
}

// A case: verified, and then its rounds in `budget` ms. together(samples) is what a run would keep.
async function stageRaced(gpu, kernels, one, setup, pace, budget, found, together, say) {
  const made = await stageMade(gpu, kernels, one, setup, say);
  try {
    const launches = await stageVerified(gpu, one, made, found);
    if (found.differ) return;
    const ms = async (calls) => (await turn(gpu, made.encode.separate, calls)).ms;
    const calls = await calibrate(ms, pace.turn, 2000);
    const arms = Object.fromEntries(STAGE.map((way) => [way, () => turn(gpu, made.encode[way], calls)]));
    const raced = (samples) => ({ one, widths: made.widths, samples, calls, launches });
    return await rounds(gpu, arms, { ...pace, budget }, quiet(say), (samples) => together(raced(samples)));
  } finally {
    freed(made);
  }
}

// The cases that fit, one by one, and those left out, with the reason.
async function swept(gpu, kernels, cases, setup, pace, result, say) {
  const { run } = gpu, { found, left, protocol } = result, end = SHARE * run.limit, sweep = run.elapsed();
  let slower = 1; // than was expected of the cases so far, at most
  for (const [place, one] of cases.entries()) {
    const widths = setup.siblings[one.row], began = run.elapsed(), rest = end - began;
    const expected = caseMs(widths, one, protocol), needed = slower * expected, room = roomOf(gpu);
    const most = 4 * Math.max(...Object.values(stageBuffers(widths, positionsOf(one))));
    if (most > room) left[named(one)] = `needs a buffer of ${most} bytes, and this GPU has ${room}`;
    else if (needed > rest) left[named(one)] = `would take ${duration(needed)}, and the time was over`;
    else {
      const done = result.raced.length, mean = (began - sweep) / Math.max(done, 1);
      const about = done ? `, about ${duration(Math.min(mean * (cases.length - place), rest))} left` : "";
      say(`Case ${place + 1} of ${cases.length}: ${named(one)}${about}`, place / cases.length);
      const budget = Math.max((0.6 * rest) / (cases.length - place), 1);
      const together = (raced) => stageResult({ ...result, raced: [...result.raced, raced] }, pace);
      const now = await stageRaced(gpu, kernels, one, setup, pace, budget, found, together, say);
      if (found.differ) return;
      result.raced = now.raced;
      slower = Math.max(slower, (run.elapsed() - began - budget) / expected);
    }
  }
}

// In the form that a record is made of.
function stageResult({ machine, found, left, protocol, raced, planned }, pace) {
  const samples = Object.fromEntries(raced.flatMap((one) =>
    STAGE.map((way) => [`${named(one.one)}, ${way}`, one.samples[way]])));
  const each = raced.map((one) => one.samples[STAGE[0]].length);
  return {
    ...found, machine, samples, raced, warmUp: 0,
    protocol: { rounds: Math.min(...each), most_rounds: Math.max(...each), turn_us: 1000 * pace.turn, ...protocol,
      planned, left_out: left },
  };
}

// The kernels on widths that fill no tile, before they measure any ceiling.
async function stageChecked(gpu, kernels, setup, found, say) {
  say("Checking the kernels, before anything is timed");
  const made = await stageMade(gpu, kernels, CHECK, setup, say), y = gpu.buffer(256);
  await stageVerified(gpu, CHECK, made, found);
  const bindings = gpu.bound(kernels.tick, [y]), told = { ...found, launches: {} };
  await ticked(gpu, (pass) => gpu.launch(pass, kernels.tick, bindings, 1), y, 20, "one submit", told);
  Object.assign(found, { entries: told.entries, differ: told.differ });
  freed(made);
  y.destroy();
}

async function paysLab(run, choice, setup, say) {
  const gpu = await open(run, 256), { machine } = gpu, pace = SWEEP[choice.pace];
  const found = { entries: 0, differ: 0, wrong: [] }, cases = planned(setup, choice.pace);
  const result = { machine, found, left: {}, raced: [], planned: cases.length };
  say(null, 0, 0, machine);
  try {
    const needed = 4 * LARGEST ** 2, room = roomOf(gpu);
    if (room < needed) {
      throw new Ended("unsupported", `This GPU offers buffers of ${room} bytes, and this lab needs ${needed}.`);
    }
    say("Compiling the kernels");
    const kernels = await stageKernels(gpu, setup.wgsl);
    await stageChecked(gpu, kernels, setup, found, say);
    if (found.differ) return { ...found, machine };
    result.protocol = await ceilingsOf(gpu, kernels, choice.pace === "quick", say);
    tellCeilings(result, null);
    await swept(gpu, kernels, cases, setup, pace, result, say);
    if (found.differ) return { ...found, machine };
    if (!result.raced.length) throw new Ended("failed", slowest(result.left));
    return stageResult(result, pace);
  } finally {
    gpu.close();
    if (result.raced.length && !found.differ) tellCeilings(result, errorOf(stageResult(result, pace)));
  }
}

const slowest = (left) => {
  const [name, why] = Object.entries(left)[0];
  return `This GPU is too slow or too small for this lab: no case was measured. The first, ${name}, ${why}.`;
};

// A case for each clock and each of the lab's.
function paysCases(choice, { samples, raced }) {
  return clocks(samples).flatMap((clock) => raced.map(({ one, widths: [c_in, first, second, third], ...rest }) =>
    caseOf({ siblings: one.row, c_in, first, second, third, side: one.side, batch: one.batch, clock },
      all(STAGE, (way) => by(clock, rest.samples[way])), rest.calls, rest.launches)));
}
