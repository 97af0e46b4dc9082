// The answers, prompt by prompt. Texts go in as textContent, never as HTML.
const problems = JSON.parse(document.getElementById("problems").textContent);
const names = JSON.parse(document.getElementById("names").textContent);
const control = (id) => document.getElementById(id);
const PAGE = 100;
let shown = PAGE;

function verdicts(problem) { return names.map((name) => problem.by[name].correct); }

// 2: right by some and wrong by others; 1: other words, or another score; 0: all the same.
function difference(problem) {
  const judged = new Set(verdicts(problem).filter((right) => right !== null));
  if (judged.size > 1) return 2;
  const said = new Set(names.map((name) => problem.by[name].answer + "\0" + problem.by[name].reward));
  return said.size > 1 ? 1 : 0;
}

problems.forEach((problem) => { problem.difference = difference(problem); });
problems.sort((a, b) => b.difference - a.difference);

function fits(problem) {
  const verdict = control("verdict").value, model = control("model").value;
  const asked = (model ? [model] : names).map((name) => problem.by[name]);
  const text = control("search").value.toLowerCase();
  if (text && ![problem.prompt, ...asked.map((said) => said.answer)].some((t) => t.toLowerCase().includes(text))) return false;
  switch (verdict) {
    case "disagree": return problem.difference === 2;
    case "differ": return problem.difference > 0;
    case "right": return asked.some((said) => said.correct === true);
    case "wrong": return asked.some((said) => said.correct === false);
    case "failed": return asked.some((said) => said.failure_message !== null);
    case "refused": return asked.some((said) => said.refused === true);
  }
  return true;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function answer(said) {
  const judged = said.correct === null ? "unjudged" : said.correct ? "right" : "wrong";
  const cell = element("td", undefined, judged);
  const right = said.samples.filter((sample) => sample.correct).length;
  const parts = [];
  if (said.failure_message !== null) parts.push(said.failure_message);
  if (said.reward !== null) parts.push("reward " + Number(said.reward.toPrecision(4)));
  if (said.judge_win !== null) parts.push("better, says the judge: " + (100 * said.judge_win).toFixed(0) + " %");
  if (said.correct !== null) parts.unshift(said.correct ? "right" : "wrong");
  if (said.refused) parts.push("refused");
  if (said.correct !== null && said.samples.length) parts.push(right + " of " + said.samples.length + " samples right");
  cell.append(element("span", parts.join(" · "), "score quiet"), element("pre", said.answer));
  if (said.samples.length) {
    const more = element("details");
    more.append(element("summary", "samples"));
    more.addEventListener("toggle", () => {
      if (more.childElementCount > 1) return;
      for (const sample of said.samples) more.append(element("pre", (sample.correct ? "✓ " : sample.correct === false ? "✗ " : "") + sample.answer));
    });
    cell.append(more);
  }
  return cell;
}

function draw() {
  const columns = [...document.querySelectorAll(".column:checked")].map((box) => box.value);
  const found = problems.filter(fits);
  const head = element("tr");
  for (const name of ["prompt", "reference", ...columns]) head.append(element("th", name));
  control("answers").tHead.replaceChildren(head);
  control("answers").tBodies[0].replaceChildren(...found.slice(0, shown).map((problem) => {
    const row = element("tr");
    const asked = element("td"), wanted = element("td");
    asked.append(element("pre", problem.prompt));
    wanted.append(element("pre", problem.reference === null || problem.reference === undefined ? "" : String(problem.reference)));
    row.append(asked, wanted, ...columns.map((name) => answer(problem.by[name])));
    return row;
  }));
  control("count").textContent = found.length + " of " + problems.length + " prompts";
  control("more").hidden = found.length <= shown;
}

for (const id of ["verdict", "model", "search"]) control(id).addEventListener("input", () => { shown = PAGE; draw(); });
for (const box of document.querySelectorAll(".column")) box.addEventListener("input", draw);
control("more").addEventListener("click", () => { shown += PAGE; draw(); });
draw();
