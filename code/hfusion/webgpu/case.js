// *Your case*: show/case.py for whatever sizes the reader sets. It measures nothing.

const WAYS = ["separate", "stacked", "copied"], GRAPH = "as a graph", MOST = 2 ** 53;
const ITEM_BYTES = { float32: 4, float16: 2, bfloat16: 2 };
const OWN = "your own";
const WHOLE = { c_in: "C", height: "H", width: "W", batch: "batch" };
const LABELS = {
  preset: "begin with", machine: "machine", mode: "mode", c_in: "C, channels in", sizes: "widths of 2 to 6 siblings",
  height: "H, pixels", width: "W, pixels", batch: "batch", dtype: "dtype", layout: "layout",
};

const said = (text) => (text.trim() ? (text.length > 40 ? `${text.slice(0, 39)}…` : text) : "nothing");

const whole = (text) => (/^\s*\d+\s*$/.test(text) ? Number(text) : NaN);
const fits = (value) => value >= 1 && value < MOST;
const expected = (value, what) => (value >= MOST ? `below ${count(MOST)}` : what);

// What the reader has set: {given}, or {wrong: names of fields, why: a sentence}.
function read(texts, copied) {
  const given = { ...texts };
  for (const [name, label] of Object.entries(WHOLE)) {
    given[name] = whole(texts[name]);
    if (!fits(given[name])) {
      const bound = expected(given[name], "of at least 1");
      return { wrong: [name], why: `${label}: expected a whole number ${bound}, got ${said(texts[name])}.` };
    }
  }
  const sizes = texts.sizes.split(/[\s,;]+/).filter((one) => one).map(whole);
  if (sizes.length < 2 || sizes.length > 6 || !sizes.every(fits)) {
    const bound = expected(Math.max(...sizes), "of at least 1");
    return { wrong: ["sizes"], why: `widths: expected 2 to 6 whole numbers ${bound}, got ${said(texts.sizes)}.` };
  }
  return { given: { ...given, sizes, copied: [...copied].filter((place) => place < sizes.length) } };
}

// One image in NCHW: each part lies in one piece, and none is copied.
const contiguous = ({ batch, layout }) => batch === 1 && layout === "NCHW";

const keyOf = ({ c_in, sizes, height, width, batch, dtype, layout }) =>
  `${c_in} ${sizes} ${height}x${width} ${batch} ${dtype} ${layout}`;

// Everything there is to show of a case on a machine; see rows and verdict of show/case.py.
function calculated(machine, given, mode) {
  const { c_in, sizes, height, width, batch, dtype, layout, copied } = given;
  const copies = contiguous(given) ? [] : copied.map((place) => sizes[place]);
  const kernels = cost.stage(sizes, c_in, batch * height * width, ITEM_BYTES[dtype], {
    reordered: machine.rule.reordered[layout] ?? [], copied: copies, bias_apart: machine.rule.bias_apart,
  });
  const at = machine.ceilings[dtype], graph = mode === GRAPH;
  const total = (what) => WAYS.map((way) => kernels[way].reduce((sum, kernel) => sum + kernel[what], 0));
  return {
    copies, launches: total("launches"), flops: total("flops"), bytes: total("bytes"),
    us: WAYS.map((way) => 1e6 * cost.seconds(kernels[way], at, graph)),
    gains: WAYS.map((way) => cost.gain(kernels.separate, kernels[way], at, graph)),
    error: machine.errors[`${dtype}, ${mode}`], was: WAYS.map((way) => recorded(machine, given, mode, way)),
  };
}

// [µs, gain] of this very case, as texts. The record copies the second and third part.
function recorded(machine, given, mode, way) {
  if (way === "copied" && !contiguous(given) && given.copied.join() !== "1,2") return null;
  return machine.recorded[keyOf(given)]?.[mode === GRAPH ? `graph, ${way}` : way] ?? null;
}

function rowsOf({ copies, launches, flops, bytes, us, gains: times, was }) {
  const rows = [["launches", ...launches.map(count)], ["copies", "0", "0", count(copies.length)],
    ["FLOPs", ...flops.map(count)], ["bytes", ...bytes.map(count)],
    ["estimated µs", ...us.map(number)], ["estimated gain", ...times.map(ratio)]];
  if (was.some((one) => one)) {
    ["recorded µs", "recorded gain"].forEach((name, place) =>
      rows.push([name, ...was.map((one) => one?.[place] ?? "–")]));
  }
  return rows;
}

// [what to expect and what was recorded, how far off such estimates were].
function verdictOf(machine, mode, { copies: { length: parts }, gains: [, stacked, copied], error, was }) {
  const gain = ratio(parts ? copied : stacked), recording = was[parts ? 2 : 1];
  const what = parts ? `stacking with ${parts} part${parts > 1 ? "s" : ""} copied` : "stacking";
  const near = error && Math.abs((parts ? copied : stacked) - 1) <= error.off, said = `the estimated gain is ${gain}`;
  const call = near ? `${what} is too close to call: ${said}, within the estimates' error of 1.`
    : gain === "1.00" ? `${what} should make no difference: ${said}.`
      : `${what} should ${gain > 1 ? "gain" : "lose"}: about ${gain} times as fast as separate.`;
  const doubt = error
    ? `Such estimates were off by ${(100 * error.off).toFixed(1)}% in the median of ${error.cases} recorded gains, `
      + `and right about gain or loss in ${error.right}.`
      + ("gained" in error ? ` A guess that always says “gain” is right in ${error.gained}`
        + (error.right <= error.gained ? ", so the estimate cannot tell a gain from a loss." : ".") : "")
    : "No record says how far off such an estimate is.";
  const unknown = Object.keys(machine.recorded).length && !recording;
  return [`On ${machine.name}${mode === GRAPH ? ", as a graph" : ""}, ${call}`
    + (recording ? ` Recorded: ${recording[1]}.` : ""),
  doubt + (unknown ? " This case itself was not recorded." : "")];
}

const SIDE = 116, TOP = 26, LABEL = 140, LINE = 18;

// The stacked matrix to scale: a row an output, a column an input.
function picture({ sizes, c_in, copied }, copies, colours) {
  const total = sizes.reduce((sum, size) => sum + size, 0), scale = SIDE / Math.max(total, c_in);
  const high = Math.max(total * scale, LINE * sizes.length), right = c_in * scale;
  const word = (x, y, text) => svg("text", { x, y }, text);
  const thin = (stroke) => ({ stroke, "stroke-width": 0.75 }); // so that a thin part is seen
  const names = sizes.map((size, place) =>
    `${count(size)} rows${copies.length && copied.includes(place) ? ", copied" : ""}`);
  let y = TOP + (high - total * scale) / 2;
  const parts = sizes.flatMap((size, place) => {
    const own = size * scale, at = TOP + ((place + 0.5) * high) / sizes.length;
    const box = { x: 0, y: y.toFixed(1), width: right.toFixed(1), height: own.toFixed(1) }, fill = colours[place];
    const d = `M${(right + 4).toFixed(1)} ${(y + own / 2).toFixed(1)}L${LABEL - 6} ${at.toFixed(1)}`;
    y += own;
    return [svg("rect", { ...box, fill, ...thin(fill) }), svg("path", { d, ...thin("currentColor") }),
      word(LABEL, (at + 4).toFixed(1), names[place])];
  });
  const label = `The stacked matrix, ${count(total)} by ${count(c_in)}, to scale: ${names.join("; ")}.`;
  const viewBox = `0 0 270 ${Math.ceil(TOP + high + 6)}`;
  const title = word(0, 14, `W, stacked: ${count(total)} × ${count(c_in)}`);
  return svg("svg", { viewBox, role: "img", "aria-label": label }, title, ...parts);
}

class Case {
  constructor(root, { machines, presets, colours }) {
    Object.assign(this, { root, machines, presets, colours, copied: new Set() });
    this.fields = Object.fromEntries(Object.keys(LABELS).map((name) => [name, this.field(name)]));
    this.build();
    this.offer("preset", presets.map(({ name }) => name));
    this.offer("machine", machines.map(({ name }) => name));
    this.fields.batch.value = 1;
    this.begin(presets[0]);
    root.addEventListener("input", ({ target }) => this.changed(target));
    document.addEventListener("fs-ceilings", ({ detail }) => this.found(detail));
  }

  field(name) {
    if (["preset", "machine", "mode", "dtype", "layout"].includes(name)) return element("select", { name });
    return element("input", { name, type: "text", autocomplete: "off", ...(name === "sizes" ? {} : { inputmode: "numeric" }) });
  }

  build() {
    const label = (name) => element("label", { class: `fs-case-${name}` }, LABELS[name], this.fields[name]);
    const line = (...names) => element("div", { class: "fs-lab-choices" }, ...names.map(label));
    this.paper = element("p", { class: "fs-lab-paper" }); // in place of what one chooses with
    this.boxes = element("fieldset", { class: "fs-lab-choices fs-case-copied" });
    this.verdict = element("p", { class: "fs-lab-large" });
    this.doubt = element("p");
    this.status = element("div", { role: "status" }, this.verdict, this.doubt);
    this.note = element("p", { class: "fs-lab-note" });
    this.news = element("p", { class: "fs-lab-note" });
    this.shown = element("div", { class: "fs-case-shown" });
    this.root.replaceChildren(element("p", { class: "fs-lab-title" }, "Your case"), this.paper,
      line("preset", "machine"), line("c_in", "sizes"),
      line("height", "width", "batch", "dtype", "layout", "mode"), this.boxes, this.status, this.shown, this.note, this.news);
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", "Your case");
  }

  // What a list offers; what was chosen stays if it can.
  offer(name, values) {
    const list = this.fields[name], chosen = list.value;
    list.replaceChildren(...values.map((value) => element("option", { value }, value)));
    if (values.includes(chosen)) list.value = chosen;
  }

  begin(preset) {
    for (const name of ["c_in", "height", "width", "batch"]) {
      if (name in preset) this.fields[name].value = preset[name];
    }
    this.fields.sizes.value = preset.sizes.join(", ");
    this.copied = new Set(preset.copied);
    this.offers();
    if (preset.layout) this.fields.layout.value = preset.layout;
    this.show();
  }

  // Lists that depend on the machine.
  offers() {
    const machine = this.machine();
    this.offer("dtype", Object.keys(machine.ceilings));
    this.offer("layout", machine.layouts);
    this.offer("mode", machine.modes);
  }

  machine() {
    return this.machines.find(({ name }) => name === this.fields.machine.value);
  }

  changed(target) {
    if (target.name === "preset") {
      const preset = this.presets.find(({ name }) => name === target.value);
      if (preset) this.begin(preset);
      return;
    }
    if (target.name === "machine") this.offers();
    if (target.type === "checkbox") this.copied[target.checked ? "add" : "delete"](Number(target.value));
    if (["c_in", "sizes", "height", "width"].includes(target.name) || target.type === "checkbox") this.mine();
    this.show();
  }

  // It is no preset any more.
  mine() {
    const list = this.fields.preset;
    if (list.value === OWN) return;
    this.offer("preset", [OWN, ...this.presets.map(({ name }) => name)]);
    list.value = OWN;
  }

  show() {
    const texts = Object.fromEntries(Object.entries(this.fields).map(([name, { value }]) => [name, value]));
    const { given, wrong, why } = read(texts, [...this.copied].sort());
    if (given) this.choices(given.sizes);
    const found = given && calculated(this.machine(), given, texts.mode);
    const most = given && Math.max(...found.flops, ...found.bytes);
    if (!given) this.refuse(why, wrong);
    else if (most >= MOST) {
      this.refuse(`C, widths, H, W, batch: expected fewer than ${count(MOST)} FLOPs and bytes, `
        + `got ${most.toPrecision(2)}.`, [...Object.keys(WHOLE), "sizes"]);
    } else this.tell(given, found, texts.mode);
  }

  marks(wrong) {
    for (const [name, field] of Object.entries(this.fields)) field.setAttribute("aria-invalid", wrong.includes(name));
  }

  refuse(sentence, wrong) {
    this.marks(wrong);
    this.says(sentence);
    this.root.dataset.caseState = "refused";
    this.shown.replaceChildren();
    this.note.textContent = this.paper.textContent = "";
  }

  // Only what has changed is heard.
  says(...sentences) {
    [this.verdict, this.doubt].forEach((paragraph, place) => {
      const sentence = sentences[place] ?? "";
      if (paragraph.textContent !== sentence) paragraph.textContent = sentence;
    });
  }

  tell(given, found, mode) {
    const machine = this.machine();
    this.marks([]);
    const numbers = table("What each way needs", ["way", ...WAYS], rowsOf(found));
    numbers.setAttribute("role", "group"); // a region would be a landmark, and two tools have the same
    this.says(...verdictOf(machine, mode, found));
    this.root.dataset.caseState = "ready";
    this.shown.replaceChildren(picture(given, found.copies, this.colours), numbers);
    this.paper.textContent = `${given.c_in} channels to siblings of ${given.sizes.join(", ")}; ${given.height} × `
      + `${given.width} pixels, batch ${given.batch}, ${given.dtype}, ${given.layout}, ${mode}.`;
    const idle = given.copied.length && !found.copies.length;
    this.note.textContent = machine.how
      + (idle ? " One image in NCHW: every part is contiguous, so nothing is copied." : "");
  }

  // A box for each sibling, made anew only if the widths have changed.
  choices(sizes) {
    if (this.boxes.dataset.sizes === sizes.join()) return this.check();
    this.boxes.dataset.sizes = sizes.join();
    const box = (size, place) => element("label", {},
      element("input", { type: "checkbox", value: place }), `${place + 1}: ${count(size)}`);
    this.boxes.replaceChildren(element("legend", {}, "parts that their consumer copies"), ...sizes.map(box));
    return this.check();
  }

  check() {
    for (const box of this.boxes.querySelectorAll("input")) box.checked = this.copied.has(Number(box.value));
  }

  // The ceilings of this page's GPU, once a lab has measured them.
  found(detail) {
    const machine = measured(detail ?? {});
    if (!machine) return;
    this.machines = [...this.machines.filter(({ name }) => name !== machine.name), machine];
    this.offer("machine", this.machines.map(({ name }) => name));
    this.news.textContent = `The list of machines has ${machine.name}.`;
    this.show();
  }
}

// A machine from what a lab says; null if that cannot be calculated with.
function measured({ device, overlaps, error, ...rest }) {
  const rates = ["flops_per_s", "bytes_per_s"], times = ["launch_s", "kernel_s"];
  const right = typeof device === "string" && rates.every((name) => Number.isFinite(rest[name]) && rest[name] > 0)
    && times.every((name) => Number.isFinite(rest[name]) && rest[name] >= 0)
    && (!error || ["off", "right", "cases"].every((name) => Number.isFinite(error[name])));
  if (!right) return null;
  return {
    name: `this page's GPU: ${device}`,
    how: `Ceilings measured in this page, by its lab. Estimated by ${overlaps ? "the roofline" : "all times added up"}.`,
    rule: { reordered: {}, bias_apart: false }, layouts: ["NHWC"], modes: ["eager"],
    ceilings: { float32: { ...rest, overlaps } }, errors: error ? { "float32, eager": error } : {}, recorded: {},
  };
}

// A cell may be run twice, and a page may have two tools: each is set up once.
for (const root of document.querySelectorAll("[data-case]:not([data-case-state])")) {
  new Case(root, JSON.parse(root.querySelector("script").textContent));
}
