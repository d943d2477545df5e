// <fs-player> shows one of its pictures at a time, <fs-walk> marks one block of its drawing
// at a time. Without this script, all pictures, or the drawing, and their list stand there.

const PAUSE_MS = 1600; // between two steps that play by themselves
const KEYS = {
  ArrowLeft: (at) => at - 1, ArrowRight: (at) => at + 1, Home: () => 1, End: (at, last) => last,
};

function made(tag, name, ...parts) {
  const node = document.createElement(tag);
  node.className = name;
  node.append(...parts);
  return node;
}

// The drawing that an image shows, as part of the page, so that it has the page's colours.
function drawn(image) {
  const bytes = Uint8Array.from(atob(image.src.split(",")[1]), (c) => c.charCodeAt(0));
  const text = new TextDecoder().decode(bytes);
  const svg = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
  svg.removeAttribute("style");
  return document.importNode(svg, true);
}

// The bar with which one steps: buttons, a slider, and where one is.
class Steps extends HTMLElement {
  // While a page is parsed, what the element holds is not there yet; the end of this script
  // sees to it. JupyterLab takes elements out when they scroll away, and puts them back.
  connectedCallback() {
    this.ready();
  }

  disconnectedCallback() {
    this.stop();
  }

  ready() {
    this.sheet = this.querySelector(".fs-sheet");
    this.list = this.querySelector("ol");
    if (this.says || !this.list) return;
    this.says = [...this.list.children].map((item) => item.textContent); // what each step says
    this.begin([...this.sheet.querySelectorAll("img")].map(drawn));
    const bar = made("div", "fs-controls");
    bar.innerHTML =
      '<button type="button" class="fs-play">Play</button>' +
      '<button type="button" aria-label="Previous step">‹</button>' +
      `<input type="range" min="1" max="${this.says.length}" value="1" aria-label="Step">` +
      '<button type="button" aria-label="Next step">›</button>' +
      "<output></output>";
    // JupyterLab looks at what has the focus, and would take its keys as commands.
    for (const control of bar.children) control.setAttribute("data-lm-suppress-shortcuts", "true");
    [this.playing, this.back, this.forth] = bar.querySelectorAll("button");
    this.slider = bar.querySelector("input");
    this.place = bar.querySelector("output");
    this.back.addEventListener("click", () => this.go(this.at - 1));
    this.forth.addEventListener("click", () => this.go(this.at + 1));
    this.slider.addEventListener("input", () => this.go(+this.slider.value));
    this.playing.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    this.addEventListener("keydown", (event) => this.pressed(event));
    this.append(bar);
    this.go(1);
    this.dataset.fsState = "ready";
  }

  get at() {
    return +this.slider.value;
  }

  pressed(event) {
    const to = KEYS[event.key];
    if (!to || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.go(to(this.at, this.says.length));
  }

  // To step n, from 1; whoever takes a step by hand stops what plays.
  go(n, byHand = true) {
    if (byHand) this.stop();
    n = Math.min(Math.max(n, 1), this.says.length);
    this.slider.value = n;
    this.slider.setAttribute("aria-valuetext", `${n}: ${this.says[n - 1]}`);
    // What is seen is the number; what is heard is also what the step says.
    this.place.replaceChildren(
      `${n} / ${this.says.length}`, made("span", "fs-heard", `: ${this.says[n - 1]}`));
    // Not "disabled": who stands on the button would lose their place.
    this.back.setAttribute("aria-disabled", n === 1);
    this.forth.setAttribute("aria-disabled", n === this.says.length);
    this.show(n);
  }

  play() {
    if (this.at === this.says.length) this.go(1);
    this.playing.textContent = "Pause";
    this.timer = setInterval(() => {
      this.go(this.at + 1, false);
      if (this.at === this.says.length) this.stop();
    }, PAUSE_MS);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    if (this.playing) this.playing.textContent = "Play";
  }
}

class Player extends Steps {
  begin(drawings) {
    this.pictures = drawings.map((svg, i) => {
      const caption = document.createElement("p");
      caption.textContent = this.says[i];
      return made("div", "fs-step", svg, caption);
    });
    this.sheet.replaceWith(made("div", "fs-steps", ...this.pictures));
    this.list.remove();
  }

  show(n) {
    this.pictures.forEach((picture, i) => { picture.hidden = i !== n - 1; });
  }
}

class Walk extends Steps {
  begin([svg]) {
    this.sheet.replaceWith(svg);
    this.blocks = [...svg.querySelectorAll("[data-step]")];
    this.here = document.createElementNS("http://www.w3.org/2000/svg", "path");
    this.here.setAttribute("class", "fs-here");
    svg.append(this.here);
    this.blocks.forEach((block) =>
      block.addEventListener("click", () => this.go(+block.dataset.step)));
    this.list.hidden = true;
    this.sentence = made("p", "fs-says");
    (this.list.closest(".fs-long") ?? this.list).after(this.sentence);
  }

  show(n) {
    // A pointer, since a block may be too narrow to show anything itself.
    const block = this.blocks.find((one) => +one.dataset.step === n);
    const [x, y, width] = ["x", "y", "width"].map((name) => +block.getAttribute(name));
    this.here.setAttribute("d", `M${x + width / 2} ${y - 1}l-5-8h10z`);
    this.sentence.textContent = this.says[n - 1];
  }
}

// Every output brings this script, and a page or a notebook may have several.
for (const [name, element] of Object.entries({ "fs-player": Player, "fs-walk": Walk })) {
  if (!customElements.get(name)) customElements.define(name, element);
  for (const found of document.querySelectorAll(name)) found.ready();
}
