// Controls: which gene, which colours, which spot.

const chosen = { gene: 0, colour: "prediction" };
const OF_GENE = { prediction: "predicted", measured: "measured", evidence: "evidence", adjustment: "adjustment", interval: "width of interval" };
if (!("measured" in data)) delete OF_GENE.measured;
if (!head.interval) delete OF_GENE.interval;

function valuesShown() {
  const { gene, colour } = chosen;
  if (colour in OBS) return Float32Array.from(data[colour]);
  const width = (spot) => {
    const interval = intervalOf(gene, spot);
    return interval ? interval.upper - interval.lower : NaN;
  };
  const read = { prediction: predictionOf, measured: measuredOf, evidence: evidenceOf, adjustment: adjustmentOf, interval: (_, spot) => width(spot) }[colour];
  return Float32Array.from({ length: nSpots }, (_, spot) => read(gene, spot));
}

// One spot in a hundred at either end would otherwise take the whole scale.
function limitsOf(values) {
  const finite = values.filter(Number.isFinite).sort();
  if (!finite.length) return [0, 1];
  const at = (share) => finite[Math.round(share * (finite.length - 1))];
  let [low, high] = [at(0.01), at(0.99)];
  if (low === high) [low, high] = [finite[0], finite[finite.length - 1]];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

function recolour() {
  const { gene, colour } = chosen;
  const values = valuesShown();
  const diverging = colour === "adjustment";
  let [low, high] = limitsOf(values);
  if ((colour === "prediction" || colour === "measured") && !byId("own-scale").checked) {
    // Predicted and measured share one scale, unless each is asked for its own.
    const both = ["prediction", "measured"].filter((name) => name in data).map((name) => limitsOf(Float32Array.from({ length: nSpots }, (_, i) => stored(name, gene, i))));
    [low, high] = [Math.min(...both.map((one) => one[0])), Math.max(...both.map((one) => one[1]))];
  }
  if (diverging) { high = Math.max(Math.abs(low), Math.abs(high)); low = -high; }
  if (colour === "out_of_reference") [low, high] = [0, 1];
  const map = diverging ? "PuOr_r" : colour in SOURCES ? "cividis" : colour in TRUST || colour === "interval" ? "viridis_r" : "viridis";
  const hex = head.colormaps[map];
  const channel = (step, k) => parseInt(hex.substr(6 * step + 2 * k, 2), 16);
  const table = Uint32Array.from({ length: 256 }, (_, step) => ((0xff << 24) | (channel(step, 2) << 16) | (channel(step, 1) << 8) | channel(step, 0)) >>> 0);
  for (let i = 0; i < nSpots; i++) {
    const step = Math.min(255, Math.max(0, Math.round((255 * (values[i] - low)) / (high - low))));
    mapState.colours[i] = Number.isFinite(values[i]) ? table[step] : HOLLOW;
  }
  showLegend(values, [low, high], hex);
  drawMap();
}

function showLegend(values, [low, high], hex) {
  const { gene, colour } = chosen;
  const of = OBS[colour];
  const name = head.genes[gene].name;
  byId("legend-title").textContent = of ? of.label : `${name} ${OF_GENE[colour]}`;
  const unit = of ? of.unit : head.unit;
  if (unit) byId("legend-title").append(element("small", unit));
  const stops = Array.from({ length: 17 }, (_, i) => `#${hex.substr(6 * Math.round((255 * i) / 16), 6)}`);
  byId("legend-bar").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  const decimals = of ? of.decimals : 2;
  const [under, over] = [values.some((one) => one < low - 1e-6), values.some((one) => one > high + 1e-6)];
  const [first] = values.filter(Number.isFinite);
  const constant = values.every((one) => one === first || Number.isNaN(one));
  const ticks = colour === "out_of_reference" ? ["no", "yes"] : constant ? [number(first, decimals)] : [
    `${under ? "≤ " : ""}${number(low, decimals)}`, number((low + high) / 2, Math.max(decimals, high - low < 4 ? 1 : 0)), `${over ? "≥ " : ""}${number(high, decimals)}`,
  ];
  byId("legend-ticks").replaceChildren(...ticks.map((text) => element("span", text)));
  const key = [];
  if (values.some((one) => !Number.isFinite(one))) key.push("Hollow: no value.");
  if (data.out_of_reference.some((one) => one)) key.push("Black rim: out of reference.");
  byId("key").textContent = key.join(" ");
}

function listModes() {
  const group = (title, modes) => {
    const made = element("optgroup", "", { label: title });
    made.append(...modes.map(([name, label]) => element("option", label, { value: name })));
    return made;
  };
  byId("colour").append(
    group("Gene", Object.entries(OF_GENE).map(([name, label]) => [name, label[0].toUpperCase() + label.slice(1)])),
    group("How far to trust it", Object.entries(TRUST).map(([name, { label }]) => [name, label])),
    group("What it rests on", Object.entries(SOURCES).map(([name, { label }]) => [name, label])),
  );
}

function listGenes() {
  const wanted = byId("gene-filter").value.trim().toLowerCase();
  const options = head.genes.map((gene, i) => [gene, i]).filter(([gene]) => gene.name.toLowerCase().includes(wanted));
  byId("gene").replaceChildren(...options.map(([gene, i]) => {
    const doubt = geneDoubt(i);
    const option = element("option", gene.trust === null ? gene.name : `${gene.name} (r ${number(gene.trust, 2)})`, { value: i });
    if (doubt && head.genes[i].trust !== null) { option.className = "doubtful"; option.title = doubt; }
    option.selected = i === chosen.gene;
    return option;
  }));
  byId("gene-count").textContent = options.length === head.genes.length ? `(${options.length})` : `(${options.length} of ${head.genes.length})`;
}

function selectGene(gene) {
  chosen.gene = gene;
  const { trust, ceiling } = head.genes[gene];
  const doubt = geneDoubt(gene);
  const parts = doubt ? [doubt] : [`r ${number(trust, 2)} on held-out donors`];
  if (ceiling !== null) parts.push(`noise allows ${number(ceiling, 2)}`);
  byId("gene-note").textContent = `${head.genes[gene].name}: ${parts.join("; ")}`;
  if (chosen.colour in OBS) { chosen.colour = "prediction"; byId("colour").value = "prediction"; }
  recolour();
  showDetails(gene, mapState.selected);
}

function selectSpot(spot) {
  if (spot < 0) return;
  mapState.selected = spot;
  showSpot(spot);
  drawMap();
  showDetails(chosen.gene, spot);
}

function hover(spot, x, y) {
  if (spot !== mapState.hovered) { mapState.hovered = spot; requestAnimationFrame(drawMarks); }
  const tip = byId("tip");
  tip.hidden = spot < 0;
  if (spot < 0) return;
  const value = valueAt(spot);
  tip.textContent = `${head.names.spots[spot]}: ${value}`;
  tip.style.left = `${Math.min(x + 14, stage.clientWidth - 150)}px`;
  tip.style.top = `${y < 50 ? y + 18 : y - 34}px`;
}

function valueAt(spot) {
  const { gene, colour } = chosen;
  if (colour === "out_of_reference") return data.out_of_reference[spot] ? "out of reference" : "within the reference";
  if (colour in OBS) return number(data[colour][spot], OBS[colour].decimals);
  if (colour === "interval") return intervalOf(gene, spot) ? intervalText(intervalOf(gene, spot)) : "no interval";
  return number({ prediction: predictionOf, measured: measuredOf, evidence: evidenceOf, adjustment: adjustmentOf }[colour](gene, spot));
}

function listenToMap() {
  let grip = null;
  const place = (event) => {
    const box = markLayer.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  markLayer.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const [x, y] = place(event);
    grip = { x, y, moved: false };
    markLayer.setPointerCapture(event.pointerId);
  });
  markLayer.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (!grip) { hover(spotAt(x, y), x, y); return; }
    if (!grip.moved && Math.hypot(x - grip.x, y - grip.y) < 4) return;
    moveMap(x - grip.x, y - grip.y);
    grip = { x, y, moved: true };
    markLayer.classList.add("dragging");
  });
  const release = (event) => {
    if (grip && !grip.moved && event.type === "pointerup") selectSpot(spotAt(...place(event), Infinity));
    grip = null;
    markLayer.classList.remove("dragging");
  };
  markLayer.addEventListener("pointerup", release);
  markLayer.addEventListener("pointercancel", release);
  markLayer.addEventListener("pointerleave", () => hover(-1));
  markLayer.addEventListener("wheel", (event) => {
    // Until the map is clicked the wheel scrolls the page, which may be a long notebook.
    if (document.activeElement !== markLayer && !event.ctrlKey) return;
    event.preventDefault();
    zoomMap(Math.exp(-event.deltaY * (event.deltaMode ? 0.03 : 0.0015)), ...place(event));
  }, { passive: false });
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  markLayer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in arrows) selectSpot(spotTowards(mapState.selected, ...arrows[event.key]));
    else if (event.key === "+" || event.key === "=") zoomAt(1.5);
    else if (event.key === "-" || event.key === "_") zoomAt(1 / 1.5);
    else if (event.key === "0") fitMap();
    else return;
    event.preventDefault();
  });
}

// Around the selected spot where there is one on screen.
function zoomAt(factor) {
  const at = onScreen(mapState.selected);
  const inside = at[0] > 0 && at[1] > 0 && at[0] < stage.clientWidth && at[1] < stage.clientHeight;
  zoomMap(factor, ...(inside ? at : []));
}

function goToSpot() {
  const wanted = byId("spot-name").value.trim().toLowerCase();
  if (!wanted) return;
  const names = head.names.spots;
  let spot = names.findIndex((name) => name.toLowerCase() === wanted);
  if (spot < 0) spot = names.findIndex((name) => name.toLowerCase().includes(wanted));
  byId("spot-note").textContent = spot < 0 ? "No spot of that name." : "";
  selectSpot(spot);
}

// The spot with the largest value, spots without one left out.
function largest(valueOf) {
  let [best, most] = [-1, -Infinity];
  for (let i = 0; i < nSpots; i++) {
    const value = valueOf(i);
    if (value > most) [best, most] = [i, value];
  }
  return best;
}

function showHeader() {
  byId("title").textContent = head.title;
  const donors = head.donors.length <= 6 ? head.donors.join(", ") : `${head.donors.length} donors`;
  const from = head.cites ? `from ${head.n_cited.toLocaleString("en")} measured spots of ${donors}` : head.regression ? "from a regression over all rows of the reference" : "from the mean of the reference and an adjustment";
  const outside = head.share_outside > 0 ? ` ${percent(head.share_outside, head.share_outside < 0.1 ? 1 : 0)} of the spots are out of reference.` : "";
  byId("summary").textContent = `${nSpots.toLocaleString("en")} spots predicted by method ${head.method}, ${from}.${outside}`;
  const warning = byId("section-warning");
  warning.hidden = head.share_unlike === null;
  if (head.share_unlike !== null) {
    warning.textContent = `${percent(head.share_unlike, 0)} of the spots look unlike every section of the reference: other stain, scanner or resolution, or other tissue.`;
  }
}

showHeader();
setUpDetails();
listModes();
listGenes();
byId("gene-filter").addEventListener("input", listGenes);
byId("gene").addEventListener("change", (event) => selectGene(Number(event.target.value)));
byId("colour").addEventListener("change", (event) => { chosen.colour = event.target.value; recolour(); });
byId("own-label").hidden = !("measured" in data);
byId("own-scale").addEventListener("change", recolour);
const fade = () => { spotLayer.style.opacity = byId("opacity").value / 100; };
byId("opacity").addEventListener("input", fade);
byId("spot-name").addEventListener("keydown", (event) => { if (event.key === "Enter") goToSpot(); });
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("zoom-in").addEventListener("click", () => zoomAt(1.5));
byId("zoom-out").addEventListener("click", () => zoomAt(1 / 1.5));
byId("zoom-fit").addEventListener("click", fitMap);
byId("go-highest").addEventListener("click", () => selectSpot(largest((spot) => predictionOf(chosen.gene, spot))));
byId("go-nearest").addEventListener("click", () => selectSpot(largest((spot) => -data.distance_percentile[spot])));
byId("go-furthest").addEventListener("click", () => selectSpot(largest((spot) => data.distance_percentile[spot])));
for (const id of ["go-nearest", "go-furthest"]) byId(id).hidden = data.distance_percentile.every(Number.isNaN);
listenToMap();
fade();
mapState.section = await readPicture("section", "0");
new ResizeObserver(layoutMap).observe(stage);
layoutMap();
mapState.selected = Math.max(0, largest((spot) => predictionOf(0, spot)));
selectGene(0);
byId("loading").remove();
document.body.dataset.ready = "yes";
