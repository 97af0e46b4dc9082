// Hovering: what a chart or a token says. Texts go in as textContent, never as HTML.
const tip = document.getElementById("tip");

function show(text, event) {
  tip.textContent = text;
  tip.hidden = false;
  const left = event.clientX + 14, top = event.clientY + 14;
  tip.style.left = Math.min(left, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = (top + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : top) + "px";
}

for (const chart of document.querySelectorAll("svg.chart")) {
  const xs = JSON.parse(chart.dataset.x), tips = JSON.parse(chart.dataset.tips), cursor = chart.querySelector(".cursor");
  const box = chart.viewBox.baseVal;
  chart.addEventListener("pointermove", (event) => {
    const frame = chart.getBoundingClientRect(), x = (event.clientX - frame.left) / frame.width * box.width;
    let near = 0;
    xs.forEach((value, i) => { if (Math.abs(value - x) < Math.abs(xs[near] - x)) near = i; });
    for (const [name, value] of [["x1", xs[near]], ["x2", xs[near]], ["y1", 10], ["y2", box.height - 34]])
      cursor.setAttribute(name, value);
    cursor.style.visibility = "visible";
    show(tips[near], event);
  });
  chart.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; tip.hidden = true; });
}

document.addEventListener("pointerover", (event) => {
  const about = event.target.closest("[data-tip]");
  if (about) show(about.dataset.tip, event);
  else if (!event.target.closest("svg.chart")) tip.hidden = true;
});
