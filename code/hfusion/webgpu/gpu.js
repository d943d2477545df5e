// The reader's GPU: asked for, watched, and given back. Every wait has an end.

const PATIENCE_S = 15; // for one wait; no single step is meant to take a second
const LIMITS = { // what the kernels need: WebGPU promises more, a browser or a device may not keep it
  maxComputeInvocationsPerWorkgroup: 64, maxComputeWorkgroupStorageSize: 8320,
  maxStorageBuffersPerShaderStage: 5, maxUniformBufferBindingSize: 320, maxComputeWorkgroupsPerDimension: 65535,
};

// Why a run ended before it was done: state is "failed", "cancelled" or "unsupported".
class Ended extends Error {
  constructor(state, sentence) {
    super(sentence);
    this.state = state;
  }
}

// One run of a lab. Whatever it waits for ends when the run does. Its time stands still while the
// page is out of sight, and while the reader is asked. `limit`, ms: when it ends by itself; `due`:
// when it means to be over.
class Run {
  constructor(limit = Infinity, ask = async () => {}) {
    const look = () => this.hold();
    Object.assign(this, { began: performance.now(), still: null, asking: false, limit, due: limit, ask });
    this.patience = PATIENCE_S;
    this.over = new Promise((_, reject) => {
      this.end = (state, sentence) => reject(new Ended(state, sentence));
    });
    this.over.catch(() => document.removeEventListener("visibilitychange", look));
    document.addEventListener("visibilitychange", look);
    this.hold();
    const off = this.later(() => this.limit - this.elapsed(), () => this.end("failed", "Stopped after "
      + `${Math.round(this.limit / 1000)} seconds: this GPU is too slow for that choice. Take a smaller one.`));
    this.over.catch(off);
  }

  // Lets time stand still, or go on.
  hold() {
    const now = performance.now();
    if (document.hidden || this.asking) {
      this.still ??= now;
    } else if (this.still !== null) {
      this.began += now - this.still;
      this.still = null;
    }
  }

  elapsed() {
    return (this.still ?? performance.now()) - this.began;
  }

  // Calls act when left() ms are over; returns what calls it off.
  later(left, act) {
    let timer;
    const look = () => {
      const ms = left();
      if (ms <= 0) act();
      else if (ms < Infinity) timer = setTimeout(look, Math.max(ms, this.still === null ? 1 : 500));
    };
    look();
    return () => clearTimeout(timer);
  }

  async wait(promise, what, seconds = this.patience) {
    const began = this.elapsed();
    let off;
    const late = new Promise((_, reject) => {
      off = this.later(() => began + 1000 * seconds - this.elapsed(), () => reject(new Ended("failed",
        `${what} did not end within ${Math.round(seconds)} seconds, so it was given up. The GPU may be busy, `
        + "or too slow for this size.")));
    });
    try {
      return await Promise.race([promise, this.over, late]);
    } finally {
      off();
    }
  }

  // Another `ms` ms are needed. What goes beyond the limit is told beforehand, and asked for.
  async afford(ms) {
    const whole = this.elapsed() + ms;
    if (whole < 0.9 * this.limit) return;
    this.asking = true;
    this.hold();
    try {
      await Promise.race([this.over, this.ask(`With this choice a run takes about ${duration(whole)} here. `
        + "Go on, or cancel and take a smaller module or batch.")]);
    } finally {
      this.asking = false;
      this.hold();
    }
    this.due = 1.5 * whole; // room for the second round
    this.limit = 3 * whole;
  }

  // Lets the page live, and measures nothing while it is out of sight.
  async breathe(say) {
    await this.wait(new Promise((resolve) => setTimeout(resolve)), "The page");
    while (document.hidden) {
      say?.("This tab is in the background, where browsers slow pages down. It goes on when you "
        + "are back.");
      await Promise.race([this.over, new Promise((resolve) =>
        document.addEventListener("visibilitychange", resolve, { once: true }))]);
    }
  }
}

const duration = (ms) =>
  (ms < 100000 ? `${Math.ceil(ms / 10000) * 10} seconds` : `${Math.ceil(ms / 60000)} minutes`);

const hint = "Current Chrome, Edge and Safari have it, and Firefox on Windows and Macs; on Linux it "
  + "may be behind a flag.";

// The device, with what this page wants of it. `bytes`: of the largest buffer.
async function open(run, bytes) {
  if (!navigator.gpu) {
    throw new Ended("unsupported", isSecureContext ? `This browser has no WebGPU. ${hint}`
      : "Browsers keep WebGPU from pages that came without encryption. Open this page by https, or as a file.");
  }
  const asked = navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  const adapter = await run.wait(asked, "Asking for the GPU");
  if (!adapter) {
    throw new Ended("unsupported", `This browser has WebGPU, but no GPU that it would use. ${hint}`);
  }
  const sizes = { maxStorageBufferBindingSize: bytes, maxBufferSize: bytes };
  for (const [name, least] of Object.entries({ ...LIMITS, ...sizes })) {
    if (adapter.limits[name] < least) {
      throw new Ended("unsupported",
        `This GPU's ${name} is ${adapter.limits[name]}, and this lab needs ${least}`
        + `${name in sizes ? " for this choice. Take a smaller batch." : "."}`);
    }
  }
  const timed = adapter.features.has("timestamp-query");
  const opened = adapter.requestDevice({ requiredFeatures: timed ? ["timestamp-query"] : [] });
  try {
    return new Gpu(run, adapter, await run.wait(opened, "Opening the GPU"), timed);
  } catch (error) {
    opened.then((device) => device.destroy(), () => {}); // it may still come
    throw error;
  }
}

const lost = "The GPU was lost: its driver or the browser's GPU process has restarted. Run it again.";

class Gpu {
  constructor(run, adapter, device, timed) {
    Object.assign(this, { run, device, machine: machineOf(adapter, timed), launches: 0 });
    device.lost.then(({ reason, message }) => run.end("failed",
      reason === "destroyed" ? "The GPU was given back." : `${lost} ${message}`));
    device.addEventListener("uncapturederror", ({ error }) => run.end("failed",
      error instanceof GPUOutOfMemoryError ? "The GPU has not enough memory for this; choose a smaller batch."
        : `The browser refused a command: ${error.message}`));
    if (timed) {
      this.stamps = device.createQuerySet({ type: "timestamp", count: 2 });
      this.resolved = this.buffer(16, GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC);
    }
  }

  buffer(size, usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC) {
    return this.device.createBuffer({ size, usage });
  }

  filled(values, usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST) {
    const made = this.buffer(values.byteLength, usage);
    this.device.queue.writeBuffer(made, 0, values);
    return made;
  }

  // {entry point: pipeline} of one text. kinds: of its bindings, in order.
  async pipelines(name, code, entries, kinds) {
    const { device, run } = this;
    device.pushErrorScope("validation"); // what the compiler says comes below, with its line
    const module = device.createShaderModule({ label: name, code });
    device.popErrorScope().catch(() => {});
    const { messages } = await run.wait(module.getCompilationInfo(), `Compiling ${name}`);
    const error = messages.find(({ type }) => type === "error");
    const refused = (message) => new Ended("failed",
      `This browser's compiler refuses the kernel ${name}: ${message}`);
    if (error) throw refused(`line ${error.lineNum}: ${error.message}`);
    const layout = device.createBindGroupLayout({ entries: kinds.map((type, binding) =>
      ({ binding, visibility: GPUShaderStage.COMPUTE, buffer: { type } })) });
    const made = entries.map((entryPoint) => device.createComputePipelineAsync({
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }), compute: { module, entryPoint } }));
    const all = Promise.all(made).catch(({ message }) => { throw refused(message); });
    const pipelines = await run.wait(all, `Compiling ${name}`, 2 * PATIENCE_S);
    return Object.fromEntries(pipelines.map((pipeline, i) => [entries[i], { pipeline, layout }]));
  }

  bound({ layout }, buffers) {
    return this.device.createBindGroup({ layout,
      entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })) });
  }

  // The one place where something is launched, and where it is counted.
  launch(pass, { pipeline }, bindings, groups) {
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, bindings);
    pass.dispatchWorkgroups(groups);
    this.launches++;
  }

  // Until everything that was submitted is done.
  async done(what = "A step on the GPU") {
    // Firefox looks only every 100 ms, unless something is submitted.
    const nudge = /firefox/i.test(navigator.userAgent) && setInterval(() => this.device.queue.submit([]), 2);
    try {
      await this.waits(this.device.queue.onSubmittedWorkDone(), what);
    } finally {
      clearInterval(nudge);
    }
  }

  // When the GPU's process dies, waits may be refused before `lost` says so.
  async waits(promise, what) {
    const told = promise.catch(({ message }) => { throw new Ended("failed", `${lost} ${message}`); });
    return this.run.wait(told, what);
  }

  async read(buffer, size) {
    const copy = this.buffer(size, GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
    try {
      const encoder = this.device.createCommandEncoder();
      encoder.copyBufferToBuffer(buffer, 0, copy, 0, size);
      this.device.queue.submit([encoder.finish()]);
      await this.done();
      await this.waits(copy.mapAsync(GPUMapMode.READ), "Reading from the GPU");
      return copy.getMappedRange().slice(0);
    } finally {
      copy.destroy();
    }
  }

  // ns from the first stamp to the second by the GPU's own clock; null if it has none, or it is wrong.
  async elapsed() {
    if (!this.stamps) return null;
    const encoder = this.device.createCommandEncoder();
    encoder.resolveQuerySet(this.stamps, 0, 2, this.resolved, 0);
    this.device.queue.submit([encoder.finish()]);
    const [begin, end] = new BigUint64Array(await this.read(this.resolved, 16));
    return end > begin ? Number(end - begin) : null;
  }

  close() {
    this.device.destroy(); // with all of its memory
  }
}

const nameless = ({ vendor, architecture, description }) => !vendor && !architecture && !description;

// What the adapter says of itself. Some browsers say nothing.
function machineOf(adapter, timed) {
  const info = adapter.info ?? {}, { vendor = "", architecture = "", description = "", device = "" } = info;
  const names = `${vendor} ${architecture} ${description} ${device}`.trim();
  const software = /swiftshader|llvmpipe|lavapipe|softpipe|basic render|warp|software/i.test(names)
    || (info.isFallbackAdapter ?? adapter.isFallbackAdapter ?? false);
  const known = description || [vendor, architecture].filter(Boolean).join(" ");
  const slug = names ? `${vendor} ${architecture || description}` : "unnamed";
  return {
    name: `webgpu-${slug.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "") || "unnamed"}`,
    kind: "webgpu", device: known || "a GPU that this browser does not name",
    vendor, architecture, description, browser: navigator.userAgent, software, timestamps: timed,
  };
}
