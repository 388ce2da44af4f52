// Comforts of the report; without scripts the page says the same.
"use strict";
document.documentElement.classList.add("js");

// Configuration: hide the rows that do not hold what is typed.
for (const block of document.querySelectorAll(".filter")) {
  const input = block.querySelector("input"), rows = [...block.querySelectorAll("tbody tr")];
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    block.querySelector(".none").hidden = rows.some((row) => !row.hidden);
  });
}

// Recordings: one button with the wave, one sound at a time.
for (const player of document.querySelectorAll(".player")) {
  const audio = player.querySelector("audio"), button = player.querySelector("button");
  button.addEventListener("click", () => (audio.paused ? audio.play() : audio.pause()));
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    button.classList.add("playing");
  });
  for (const end of ["pause", "ended"]) audio.addEventListener(end, () => button.classList.remove("playing"));
  audio.addEventListener("timeupdate", () => {
    const part = audio.ended || !audio.duration ? 0 : audio.currentTime / audio.duration;
    button.style.setProperty("--played", `${100 * part}%`);
  });
}

// Videos: they play while the pointer rests on them, or when they are clicked; the controls would cover them.
for (const video of document.querySelectorAll(".card video")) {
  video.removeAttribute("controls");
  video.tabIndex = 0;
  const turn = () => (video.paused ? video.play() : video.pause());
  video.addEventListener("click", turn);
  video.addEventListener("keydown", (event) => { if (event.key === " ") { event.preventDefault(); turn(); } });
  video.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") video.play(); });
  video.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") video.pause(); });
}

// Charts: read off the values at the pointer.
function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle; else high = middle;
  }
  return step - steps[low] < steps[high] - step ? low : high;
}
for (const chart of document.querySelectorAll(".chart")) {
  const [first, last, left, right] = chart.dataset.frame.split(",").map(Number);
  const lines = JSON.parse(chart.dataset.lines).filter((line) => line.steps.length);
  const svg = chart.querySelector(".plot svg"), tip = chart.querySelector(".tip"), cursor = chart.querySelector(".cursor");
  const leave = () => { tip.hidden = true; cursor.style.visibility = "hidden"; };
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const part = ((event.clientX - box.left) / box.width - left) / (right - left);
    if (part < -0.05 || part > 1.05) return leave();
    const wanted = first + Math.min(Math.max(part, 0), 1) * (last - first);
    const lead = lines[lines.length - 1], step = lead.steps[nearest(lead.steps, wanted)];
    const said = lines.map((line) => `${line.label}  ${line.values[nearest(line.steps, step)]}`);
    tip.textContent = [`step ${step.toLocaleString("en")}`, ...said].join("\n");
    const at = left + ((step - first) / (last - first)) * (right - left);
    const x = at * svg.viewBox.baseVal.width;
    cursor.setAttribute("x1", x); cursor.setAttribute("x2", x);
    cursor.style.visibility = "visible";
    tip.hidden = false;
    tip.style.left = at < 0.5 ? `${100 * at + 2}%` : "auto";
    tip.style.right = at < 0.5 ? "auto" : `${100 * (1 - at) + 2}%`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", leave);
}

// Paper shows everything that unfolds.
addEventListener("beforeprint", () => {
  for (const block of document.querySelectorAll("details")) block.open = true;
});
