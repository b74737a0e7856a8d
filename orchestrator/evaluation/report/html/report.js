"use strict";
(() => {
  const PAGE = 20;
  const data = JSON.parse(document.getElementById("data").textContent);
  const list = document.getElementById("list");
  const control = (id) => document.getElementById(id);
  let page = 0;

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const MARKS = { right: "✓ right", wrong: "✗ wrong", failed: "! failed: unscored" };
  const outcome = (sample) => {
    if (sample.error) return "failed";
    if (sample.scores) return "whole";
    return sample.actions.some((action) => action[2] === false) ? "wrong" : "right";
  };

  const searchable = new Map();
  const textOf = (sample) => {
    if (!searchable.has(sample)) {
      const actions = sample.actions.map((action) => `${action[0]}\n${action[1]}`);
      const adapters = sample.adapters.map((adapter) => adapter[0]);
      const words = [sample.text, sample.episode, sample.error, ...actions, ...adapters];
      searchable.set(sample, words.join("\n").toLowerCase());
    }
    return searchable.get(sample);
  };

  const filtered = () => {
    const strategy = control("strategy").value;
    const dataset = control("dataset").value;
    const words = control("words").value.trim().toLowerCase();
    const wantedOutcome = control("outcome").value;
    return data.samples.filter(
      (sample) =>
        (!strategy || sample.strategy === strategy) &&
        (!dataset || sample.dataset === dataset) &&
        (!wantedOutcome || outcome(sample) === wantedOutcome) &&
        (!words || textOf(sample).includes(words))
    );
  };

  const table = (columns, rows) => {
    const box = make("div", "scroll");
    const body = make("table");
    const head = make("tr");
    columns.forEach((column) => head.append(make("th", "", column)));
    body.append(head);
    rows.forEach(([className, cells]) => {
      const row = make("tr", className);
      cells.forEach((cell) => row.append(make("td", "", cell)));
      body.append(row);
    });
    box.append(body);
    return box;
  };

  const shown = (value) => (value === null ? "—" : String(value));

  const pictures = (sample) => {
    const box = make("div", "pictures");
    sample.pictures.forEach((number) => {
      const source = data.pictures[number];
      if (source) {
        const image = make("img");
        image.src = source;
        image.alt = "screen";
        box.append(image);
      } else {
        box.append(make("span", "missing", "image not shown"));
      }
    });
    if (sample.more_pictures) box.append(make("span", "missing", `${sample.more_pictures} more`));
    return box;
  };

  const scored = (sample) => {
    const parts = Object.entries(sample.scores).map(([name, score]) => `${name} ${score}`);
    if (sample.grade !== null) parts.push(`judge's grade ${sample.grade}`);
    return parts.join(" · ");
  };

  const card = (sample) => {
    const mark = outcome(sample);
    const box = make("article", `card ${mark}`);
    const place = sample.whole ? "whole episode" : `step ${sample.step}/${sample.steps}`;
    box.append(make("h3", "", `${sample.strategy} · ${sample.dataset} · ${sample.episode} · ${place}`));
    box.append(make("span", `mark ${mark}`, sample.scores ? scored(sample) : MARKS[mark]));
    box.append(pictures(sample));
    const asked = make("details");
    asked.append(make("summary", "", "Prompt"), make("pre", "", sample.text));
    box.append(asked);
    if (sample.error) box.append(make("p", "error", sample.error));
    const marks = (right) => (right === null ? ["", sample.scores ? "" : "unscored"] : right ? ["right", MARKS.right] : ["wrong", MARKS.wrong]);
    box.append(
      table(
        ["step", "truth", "answer", ""],
        sample.actions.map(([truth, answer, right], index) => {
          const [className, verdict] = marks(right);
          return [className, [String(sample.actions.length > 1 ? index + 1 : sample.step), shown(truth), shown(answer), verdict]];
        })
      )
    );
    if (sample.adapters.length) {
      box.append(
        table(
          ["adapter", "similarity", "weight"],
          sample.adapters.map(([name, similarity, weight]) => [
            name === sample.adapter ? "true" : "",
            [name === sample.adapter ? `${name} (the dataset's own)` : name, shown(similarity), shown(weight)],
          ])
        )
      );
    }
    const facts = [];
    if (sample.seconds !== null) facts.push(`${(1000 * sample.seconds).toFixed(0)} ms`);
    if (sample.grade !== null && !sample.scores) facts.push(`judge's grade ${sample.grade}`);
    if (sample.tokens) facts.push(`${sample.tokens[0]} tokens in, ${sample.tokens[1]} out`);
    if (facts.length) box.append(make("p", "note", facts.join(" · ")));
    return box;
  };

  const show = () => {
    const samples = filtered();
    const pages = Math.max(1, Math.ceil(samples.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const first = page * PAGE;
    list.replaceChildren(...samples.slice(first, first + PAGE).map(card));
    control("count").textContent = `${samples.length} of ${data.samples.length} samples, page ${page + 1} of ${pages}`;
    control("previous").disabled = page === 0;
    control("next").disabled = page === pages - 1;
  };

  const offer = (id, values) => values.forEach((value) => {
    const option = make("option", "", value);
    option.value = value;
    control(id).append(option);
  });

  offer("strategy", [...new Set(data.samples.map((sample) => sample.strategy))]);
  offer("dataset", [...new Set(data.samples.map((sample) => sample.dataset))]);
  ["strategy", "dataset", "words", "outcome"].forEach((id) =>
    control(id).addEventListener("input", () => { page = 0; show(); })
  );
  control("previous").addEventListener("click", () => { page -= 1; show(); });
  control("next").addEventListener("click", () => { page += 1; show(); });
  show();
})();
