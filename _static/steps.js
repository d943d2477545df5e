// <fs-player> shows one of its pictures at a time, <fs-walk> marks one block of its drawing
// at a time. Without this script, all pictures, or the drawing and its list, stand there.

const PAUSE_MS = 1600; // between two steps that play by themselves

// The bar with which one steps: buttons, a slider, and where one is.
class Steps extends HTMLElement {
  connectedCallback() {
    if (this.querySelector(".fs-controls")) return;
    this.says = this.begin(); // what each step says
    const bar = document.createElement("div");
    bar.className = "fs-controls";
    bar.innerHTML =
      '<button type="button" class="fs-play">Play</button>' +
      '<button type="button" aria-label="Previous step">‹</button>' +
      `<input type="range" min="1" max="${this.says.length}" value="1" aria-label="Step">` +
      '<button type="button" aria-label="Next step">›</button>' +
      "<output></output>";
    [this.playing, this.back, this.forth] = bar.querySelectorAll("button");
    this.slider = bar.querySelector("input");
    this.place = bar.querySelector("output");
    this.back.addEventListener("click", () => this.go(this.at - 1));
    this.forth.addEventListener("click", () => this.go(this.at + 1));
    this.slider.addEventListener("input", () => this.go(+this.slider.value));
    this.playing.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    this.append(bar);
    this.go(1);
  }

  disconnectedCallback() {
    this.stop();
  }

  get at() {
    return +this.slider.value;
  }

  // To step n, from 1; whoever takes a step by hand stops what plays.
  go(n, byHand = true) {
    if (byHand) this.stop();
    n = Math.min(Math.max(n, 1), this.says.length);
    this.slider.value = n;
    this.slider.setAttribute("aria-valuetext", `${n}: ${this.says[n - 1]}`);
    // What is seen is the number; what is heard is also what the step says.
    this.place.innerHTML = `${n} / ${this.says.length}<span class="visually-hidden"></span>`;
    this.place.lastChild.textContent = `: ${this.says[n - 1]}`;
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
  begin() {
    this.pictures = [...this.querySelectorAll(".fs-step")];
    return this.pictures.map((picture) => picture.querySelector("p").textContent);
  }

  show(n) {
    this.pictures.forEach((picture, i) => { picture.hidden = i !== n - 1; });
  }
}

class Walk extends Steps {
  begin() {
    this.blocks = [...this.querySelectorAll("[data-step]")];
    this.here = document.createElementNS("http://www.w3.org/2000/svg", "path");
    this.here.setAttribute("class", "fs-here");
    this.querySelector("svg").append(this.here);
    this.blocks.forEach((block) =>
      block.addEventListener("click", () => this.go(+block.dataset.step)));
    const list = this.querySelector("ol");
    list.hidden = true;
    this.sentence = document.createElement("p");
    this.sentence.className = "fs-says";
    list.after(this.sentence);
    return [...list.children].map((item) => item.textContent);
  }

  show(n) {
    // A pointer, since a block may be too narrow to show anything itself.
    const { x, y, width } = this.blocks.find((block) => +block.dataset.step === n).getBBox();
    this.here.setAttribute("d", `M${x + width / 2} ${y - 1}l-5-8h10z`);
    this.sentence.textContent = this.says[n - 1];
  }
}

// Defined late, so that each element finds what it holds parsed.
document.addEventListener("DOMContentLoaded", () => {
  customElements.define("fs-player", Player);
  customElements.define("fs-walk", Walk);
});
