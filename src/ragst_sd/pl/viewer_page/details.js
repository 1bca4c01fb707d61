// What is said about the selected spot. Names come from files, so they only ever become text.

const byId = (id) => document.getElementById(id);

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const labelOf = (name, row) => head.labels[name][data[`cited_${name}`][row]];

const COLUMNS = [
  ["", "rank"], ["Donor, spot", ""], ["Weight", "number"], ["Measured", "number"], ["Correction", "number"],
  ["Contribution", "number"], ["Adding up", "bar"],
];

function setUpDetails() {
  for (const [name, kind] of COLUMNS) {
    if (name === "Correction" && !head.centered) continue;
    const cell = element(name ? "th" : "td", name, { class: kind });
    if (name) cell.scope = "col";
    byId("columns").append(cell);
  }
  const notes = [`Values are ${head.unit}, shown with ${head.decimals} decimals; the last digit of a contribution may be off by one.`];
  if (head.cites && head.centered) notes.push("Correction brings the level of the measured spot's section to that of the reference; contribution = weight × (measured + correction).");
  else if (head.cites) notes.push("Contribution = weight × measured.");
  byId("unit-note").textContent = notes.join(" ");
}

function showDetails(gene, spot) {
  const name = head.names.spots[spot];
  byId("spot-title").textContent = `Spot ${name}`;
  showValue(gene, spot);
  const warnings = warningsOf(gene, spot);
  byId("warnings").replaceChildren(...warnings.map((text) => element("li", text)));
  byId("warnings").hidden = !warnings.length;
  showFacts(spot);
  drawTile(byId("tile"), "tiles", spot, head.image.tile_px, () => mapState.selected === spot);
  const lines = explain(gene, spot);
  showGallery(spot, lines);
  showTable(gene, lines);
  byId("announce").textContent = sentence(gene, spot, lines, warnings);
}

function showValue(gene, spot) {
  const line = byId("value");
  const prediction = predictionOf(gene, spot);
  line.replaceChildren(document.createTextNode(`${head.genes[gene].name} predicted `));
  if (!Number.isFinite(prediction)) {
    line.append(element("strong", noValue(spot)));
    return;
  }
  line.append(element("strong", number(prediction), { id: "predicted" }));
  const interval = intervalOf(gene, spot);
  if (interval) line.append(element("span", ` ${intervalText(interval)}`, { id: "interval" }));
  const measured = measuredOf(gene, spot);
  if (Number.isFinite(measured)) {
    line.append(document.createTextNode(", measured "), element("strong", number(measured), { id: "measured" }));
  }
}

const noValue = (spot) => (isOutside(spot) ? "no value: outside the image" : "no value: no cited spot measured it");

function intervalText({ lower, upper }) {
  const level = head.interval.level === null ? "interval" : `${Math.round(100 * head.interval.level)} % interval`;
  return `(${level} ${number(lower, head.decimals - 1)} to ${number(upper, head.decimals - 1)})`;
}

function showFacts(spot) {
  const facts = [];
  if (head.cites) {
    facts.push(["Measured spots cited", String(data.n_cited[spot])], ["Effective number", number(data.effective_n[spot], 1)]);
  }
  if ("disagreement" in data && Number.isFinite(data.disagreement[spot])) {
    facts.unshift([head.cites ? "Disagreement of the cited spots" : "Disagreement of the nearest spots", `${number(data.disagreement[spot], 2)} × what is usual`]);
  }
  facts.push([head.cites ? "Donors cited" : "Donors nearby", String(data.n_donors[spot])]);
  facts.push(["Distance to measured tissue", Number.isNaN(data.distance_percentile[spot]) ? "–" : `percentile ${number(data.distance_percentile[spot], 0)}`]);
  facts.push(["Difference in look (limit 1)", number(data.appearance_distance[spot], 2)]);
  facts.push(["Share of evidence", Number.isNaN(data.evidence_share[spot]) ? "–" : percent(data.evidence_share[spot], 0)]);
  byId("facts").replaceChildren(...facts.flatMap(([term, text]) => [element("dt", term), element("dd", text)]));
  byId("tile-caption").textContent = head.image.tile_um ? `tile, ${Math.round(head.image.tile_um)} µm wide` : "tile";
}

// Cited tiles by weight. All tiles, and those of a pair, show as much tissue on as many pixels.
function showGallery(spot, lines) {
  const cited = (lines ?? []).filter((line) => line.kind === "neighbour");
  byId("alike").hidden = !cited.length || !head.image.thumbnail_px;
  byId("pair").hidden = true;
  if (byId("alike").hidden) return;
  byId("gallery").replaceChildren(...cited.map((line, i) => {
    const words = `${labelOf("donor", line.row)}, ${percent(line.weight)}`;
    const item = element("li");
    const button = element("button", "", { type: "button", "aria-label": `Measured spot ${i + 1}: ${words}` });
    const canvas = element("canvas", "", { "aria-hidden": "true" });
    button.append(canvas, element("small", `${i + 1}. ${words}`));
    item.append(button);
    drawTile(canvas, "thumbnails", line.row, head.image.thumbnail_px);
    const show = () => showPair(button, spot, line.row, words);
    const hide = () => { byId("pair").hidden = true; };
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, show);
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, hide);
    return item;
  }));
}

function showPair(button, spot, row, words) {
  const pair = byId("pair");
  drawTile(byId("pair-query"), "tiles", spot, head.image.tile_px, () => mapState.selected === spot);
  pair.dataset.row = row;
  drawTile(byId("pair-cited"), "thumbnails", row, head.image.thumbnail_px, () => pair.dataset.row === String(row));
  byId("pair-caption").textContent = words;
  pair.hidden = false;
  // Beside the tile where the map is, else below or above it: never under the pointer.
  const [tile, all] = [button.getBoundingClientRect(), byId("details").getBoundingClientRect()];
  const { width, height } = pair.getBoundingClientRect();
  const beside = all.left > width + 16;
  const below = tile.bottom + 8 + height < window.innerHeight;
  const left = beside ? all.left - width - 12 : Math.min(Math.max(8, tile.left), window.innerWidth - width - 8);
  const top = beside ? tile.top + tile.height / 2 - height / 2 : below ? tile.bottom + 8 : tile.top - height - 8;
  pair.style.left = `${left}px`;
  pair.style.top = `${beside ? Math.min(Math.max(8, top), window.innerHeight - height - 8) : top}px`;
}

const LABELS = { mean: "reference mean", adjustment: head.regression ? "regression" : "adjustment", total: "predicted" };

function showTable(gene, lines) {
  const table = byId("neighbours");
  table.hidden = !lines;
  if (!lines) return;
  byId("neighbours-caption").textContent = head.cites
    ? `${head.genes[gene].name}: the measured tissue behind it` : `${head.genes[gene].name}: ${head.regression ? "a regression over all rows, no cited spot" : `method ${head.method} cites no measured spots`}`;
  let end = 0;
  const spans = lines.map((line) => {
    if (line.kind === "total") return [0, line.contribution];
    const start = end;
    end += line.contribution;
    return [start, end];
  });
  const low = Math.min(0, ...spans.flat());
  const room = Math.max(0, ...spans.flat()) - low || 1;
  lines.forEach((line, i) => { line.rank = i + 1; });
  const rows = lines.map((line, i) => tableRow(line, spans[i].map((one) => (one - low) / room), -low / room));
  table.tBodies[0].replaceChildren(...rows.filter((_, i) => lines[i].kind === "neighbour"));
  table.tFoot.replaceChildren(...rows.filter((_, i) => lines[i].kind !== "neighbour"));
}

function tableRow(line, span, zero) {
  const cited = line.kind === "neighbour";
  const unmeasured = cited && !Number.isFinite(line.value);
  const row = element("tr", "", { class: unmeasured ? "neighbour unmeasured" : line.kind });
  const rank = element("td", cited ? String(line.rank) : "", { class: "rank" });
  const title = element("th", "", { scope: "row" });
  if (cited) {
    const [donor, sample] = [labelOf("donor", line.row), labelOf("sample", line.row)];
    title.append(element("span", donor, { class: "donor" }));
    const reference = head.names.cited[line.row];
    const rest = reference.startsWith(`${sample}:`) ? reference.slice(sample.length + 1) : reference;
    title.append(element("small", sample === donor || rest.startsWith(sample) ? rest : `${sample}: ${rest}`, { title: reference }));
  } else {
    title.textContent = line.kind === "others" ? `${line.count} more` : LABELS[line.kind];
  }
  row.append(rank, title);
  const add = (text, name) => row.append(element("td", text, { class: "number", "data-column": name }));
  const has = cited || line.kind === "others" || line.kind === "mean";
  add(has ? percent(line.weight) : "", "weight");
  add(cited ? (unmeasured ? "not measured" : number(line.value)) : "", "value");
  if (head.centered) add(cited && !unmeasured ? signed(line.correction) : "", "correction");
  add(line.kind === "total" || line.kind === "mean" ? number(line.contribution) : signed(line.contribution), "contribution");
  row.append(bar(line.kind, span, zero));
  return row;
}

function bar(kind, [start, end], zero) {
  const cell = element("td", "", { class: "bar", "aria-hidden": "true" });
  const room = element("div");
  const [mark, axis] = [element("i", "", { class: kind }), element("b")];
  mark.hidden = start === end;
  mark.style.left = `${100 * Math.min(start, end)}%`;
  mark.style.width = `${100 * Math.abs(end - start)}%`;
  axis.style.left = `${100 * zero}%`;
  room.append(mark, axis);
  cell.append(room);
  return cell;
}

function sentence(gene, spot, lines, warnings) {
  const parts = [`Spot ${head.names.spots[spot]}.`];
  const gname = head.genes[gene].name;
  if (!lines) {
    parts.push(`${gname}: ${noValue(spot)}.`);
  } else {
    const interval = intervalOf(gene, spot);
    parts.push(`${gname} predicted ${number(predictionOf(gene, spot))}${interval ? `, ${intervalText(interval)}` : ""}.`);
    const measured = measuredOf(gene, spot);
    if (Number.isFinite(measured)) parts.push(`Measured ${number(measured)}.`);
    const from = head.cites ? `${data.n_cited[spot]} measured spots of ${data.n_donors[spot]} donor${data.n_donors[spot] === 1 ? "" : "s"}` : "the reference mean";
    parts.push(`Evidence ${number(evidenceOf(gene, spot))} from ${from}, adjustment ${number(adjustmentOf(gene, spot))}.`);
  }
  if (warnings.length) parts.push(`Warnings: ${warnings.join(" ")}`);
  return parts.join(" ");
}
