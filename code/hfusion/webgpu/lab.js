// The element on the page: choices, Run, Cancel, progress, results, files. Nothing starts by itself.

LABS.ladder = {
  title: "The ladder, on your GPU", run: ladderLab, cases: ladderCases, view: ladderView,
  question: "What is each variant of the module worth on a reader's own GPU?",
};
LABS.launches = {
  title: "What a launch costs, on your GPU", run: launchesLab, cases: launchesCases, view: launchesView,
  question: "What does a launch cost on a reader's own GPU?",
};
const NS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], FEW = [1, 10, 100];
const QUICK = new URLSearchParams(location.search).get("lab") === "quick";
let MODULES = {};

function button(name, mark, act) {
  const made = element("button", { type: "button", [mark]: "" }, name);
  made.addEventListener("click", act);
  return made;
}

function choiceOf(name, label, options, chosen) {
  const offered = options.map(([value, text]) => element("option", { value }, text));
  const list = element("select", { name }, ...offered);
  list.value = chosen;
  return element("label", {}, `${label} `, list);
}

class Lab {
  constructor(root, setup) {
    Object.assign(this, { root, setup, kind: root.dataset.lab });
    LABS[this.kind].begin?.(setup);
    this.build();
    this.state("idle", "Nothing has run yet. A run installs nothing and sends nothing.");
    if (!navigator.gpu) this.unsupported();
  }

  build() {
    const { title } = LABS[this.kind], level = element("p", { class: "fs-lab-title" }, title);
    this.starts = button("Run it here", "data-lab-run", () => this.start());
    this.stops = button("Cancel", "data-lab-cancel", () =>
      this.run?.end("cancelled", "Cancelled. The GPU's memory has been given back."));
    this.goes = button("Go on", "data-lab-go", () => this.agree?.());
    this.adapter = element("p", { class: "fs-lab-adapter" });
    this.says = element("p", { role: "status", class: "fs-lab-says" });
    this.bar = element("progress", { max: "1", value: "0", "aria-label": "Progress" });
    this.results = element("div", { class: "fs-lab-results" });
    this.files = element("div", { class: "fs-lab-files" });
    const paper = this.root.querySelector("p"); // what stood here before the script ran
    if (paper) paper.className = "fs-lab-paper";
    this.root.replaceChildren(level, ...(paper ? [paper] : []),
      element("div", { class: "fs-lab-choices" }, ...this.choices(), this.starts, this.goes, this.stops),
      this.adapter, this.says, this.bar, this.results, this.files);
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", title);
    this.opens();
  }

  choices() {
    const paces = [["minute", "under a minute"], ["minutes", "three minutes"]];
    const time = QUICK ? [] : [choiceOf("pace", "time", paces, "minute")];
    const names = Object.keys(this.setup.modules);
    if (!names.length) return this.setup.small ? [] : time;
    const batches = [1, 2, 4, 8, 16, 32];
    const modules = names.map((name) => [name, name]), first = QUICK ? this.setup.quick : names[0];
    return [choiceOf("module", "module", modules, first),
      choiceOf("batch", "batch", batches.map((n) => [n, n]), 1), ...time];
  }

  chosen() {
    const value = (name) => this.root.querySelector(`select[name=${name}]`)?.value;
    const ns = QUICK || this.setup.small ? FEW : NS;
    const pace = QUICK ? "quick" : value("pace") ?? "minute";
    return { module: value("module"), batch: Number(value("batch")), pace, ns };
  }

  state(state, sentence) {
    const focused = this.root.contains(document.activeElement), running = state === "running";
    this.root.dataset.labState = state;
    this.says.textContent = sentence;
    this.starts.disabled = running;
    this.stops.disabled = !running;
    this.goes.hidden = true;
    this.bar.hidden = !running;
    this.root.querySelectorAll("select").forEach((list) => { list.disabled = running; });
    if (focused) (running ? this.stops : this.starts).focus();
  }

  unsupported() {
    const run = new Run();
    open(run, 0).catch(({ state, message }) => this.state(state, message)).finally(() => run.end());
  }

  // From a run, in words for the reader: what it does, how far it is, and on what.
  progress(text, ...rest) {
    const machine = rest.find((one) => one?.kind === "webgpu");
    if (machine) this.adapter.textContent = `Adapter: ${machine.device}${machine.software ? ", software" : ""}`;
    if (text && text !== this.says.textContent) this.says.textContent = text;
    const shares = rest.filter((one) => typeof one === "number");
    if (shares.length) this.bar.value = Math.max(...shares);
    else this.bar.removeAttribute("value");
  }

  async start() {
    if (this.run) return;
    if (document.querySelector("[data-lab-state=running]")) {
      this.says.textContent = "Another lab on this page is running. One at a time: they would "
        + "disturb each other.";
      return;
    }
    const choice = this.chosen();
    const run = this.run = new Run(PACE[choice.pace].limit, (question) => this.ask(question));
    delete this.root.dataset.labDiffer;
    delete this.root.dataset.labEntries;
    this.clear();
    this.state("running", "Asking for the GPU");
    try {
      const say = (...told) => { if (this.run === run) this.progress(...told); };
      const result = await Promise.race([LABS[this.kind].run(run, choice, this.setup, say), run.over]);
      await this.finish(choice, result, "done", `Done: 0 of ${count(result.entries)} entries differ.`);
    } catch (error) {
      const known = error instanceof Ended, kept = error.state === "cancelled" && run.kept?.();
      if (kept) {
        await this.finish(choice, kept, "cancelled",
          `${error.message} The rounds that were complete are shown below.`);
        return;
      }
      if (!known) console.warn(error);
      this.state(known ? error.state : "failed", known ? error.message : `It failed: ${error.message}`);
    } finally {
      run.end("cancelled", "Over."); // whatever still waits
      this.run = null;
    }
  }

  // Until the reader agrees.
  async ask(question) {
    this.goes.hidden = false;
    this.says.textContent = question;
    if (this.root.contains(document.activeElement)) this.goes.focus();
    await new Promise((resolve) => { this.agree = resolve; });
    const focused = document.activeElement === this.goes;
    this.goes.hidden = true;
    if (focused) this.stops.focus();
  }

  async finish(choice, result, state, sentence) {
    this.root.dataset.labDiffer = result.differ;
    this.root.dataset.labEntries = result.entries;
    if (result.differ) {
      this.state("failed", `${count(result.differ)} of ${count(result.entries)} entries differ, in: `
        + `${result.wrong.join("; ")}. Either this page's kernels or this GPU's compiler is wrong. `
        + "No time is shown.");
      return;
    }
    const record = recordOf(this.kind, choice, result, this.setup.sources);
    record.digest = await digestOf(record);
    const text = JSON.stringify(record, null, 1);
    const holder = element("script", { type: "application/json", "data-lab-record": "" });
    holder.textContent = text;
    this.results.replaceChildren(...shown(this.kind, record, true), holder, this.download(record, text));
    this.state(state, sentence);
  }

  download(record, text) {
    this.address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    const name = `${record.experiment}-${record.machine.name}-${record.date}.json`;
    const link = element("a", { href: this.address, download: name }, "Save this record");
    return element("p", {}, link, " It stays with you: nothing is sent anywhere.");
  }

  clear() {
    this.results.replaceChildren();
    if (this.address) URL.revokeObjectURL(this.address);
    this.address = null;
  }

  // Records in files, chosen or dropped. They are read here and go nowhere.
  opens() {
    const input = element("input", { type: "file", accept: ".json,application/json" });
    input.addEventListener("change", () => {
      if (input.files[0]) this.opened(input.files[0]);
      input.value = "";
    });
    this.files.append(element("label", {}, "Open a record, or drop it here: ", input));
    this.root.addEventListener("dragover", (event) => event.preventDefault());
    this.root.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) this.opened(event.dataTransfer.files[0]);
    });
  }

  async opened(file) {
    if (this.run) return;
    try {
      const { kind, record } = await parsed(await file.text());
      const nodes = shown(kind, record, false);
      this.clear();
      this.results.replaceChildren(...nodes);
      this.says.textContent = `${file.name} is shown below.`;
    } catch ({ message }) {
      this.says.textContent = `${file.name} cannot be shown: ${message}.`;
    }
  }
}

// A cell may be run twice, and a page may have two labs: each is set up once.
const here = Object.keys(LABS).map((kind) => `[data-lab=${kind}]:not([data-lab-state])`);
for (const root of document.querySelectorAll(here)) {
  const setup = JSON.parse(root.querySelector("script").textContent);
  MODULES = { ...MODULES, ...setup.modules };
  new Lab(root, { ...setup, wgsl: WGSL });
}
