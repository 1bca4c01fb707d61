// Values of spots and genes, and what each is made of. The sums are those of rg.get.explain.

const data = await readNumbers();
const nSpots = head.names.spots.length;
const unitStep = 10 ** head.decimals;
// What orders errors on held-out donors, dark where they are larger; and what does not, of which neither end is good or bad.
const TRUST = {
  disagreement: { label: "Disagreement of the cited spots", unit: "of what is usual for a gene, mean over genes", decimals: 2 },
  distance_percentile: { label: "Distance to measured tissue", unit: "percentile of held-out reference spots", decimals: 0 },
  appearance_distance: { label: "Difference in look from the nearest section", unit: "of the largest that is within the reference", decimals: 2 },
  out_of_reference: { label: "Unlike the reference", unit: "", decimals: 0 },
};
if (!("disagreement" in data)) delete TRUST.disagreement;
const SOURCES = {
  effective_n: { label: "Effective number of measured spots", unit: "spots", decimals: 1 },
  n_donors: { label: "Donors cited", unit: "donors", decimals: 0 },
  evidence_share: { label: "Share of evidence", unit: "of the departure from the mean", decimals: 2 },
};
const OBS = { ...TRUST, ...SOURCES };

function stored(name, gene, spot, step = unitStep) {
  const whole = data[name][gene * nSpots + spot];
  return whole === head.missing ? NaN : whole / step;
}

// Every spot on the image has neighbours of some donor.
const isOutside = (spot) => data.n_donors[spot] === 0;
const predictionOf = (gene, spot) => stored("prediction", gene, spot);
const adjustmentOf = (gene, spot) => stored("adjustment", gene, spot);
const measuredOf = (gene, spot) => ("measured" in data ? stored("measured", gene, spot) : NaN);

function evidenceOf(gene, spot) {
  const at = gene * nSpots + spot;
  const [prediction, adjustment] = [data.prediction[at], data.adjustment[at]];
  return prediction === head.missing || adjustment === head.missing ? NaN : (prediction - adjustment) / unitStep;
}

function intervalOf(gene, spot) {
  if (!head.interval) return null;
  const at = gene * nSpots + spot;
  const [prediction, above, skew] = [data.prediction[at], data.above[at], data.skew[at]];
  if (above === head.missing || prediction === head.missing) return null;
  const centre = Math.floor((prediction + 5) / 10);
  const lower = skew === head.at_zero ? 0 : centre - above - skew;
  return { lower: lower / (unitStep / 10), upper: (centre + above) / (unitStep / 10) };
}

function number(value, decimals = head.decimals) {
  if (!Number.isFinite(value)) return "–";
  const text = value.toFixed(decimals);
  return (Number(text) === 0 ? (0).toFixed(decimals) : text).replace("-", "\u2212");
}

const signed = (value, decimals) => (value > 0 && Number(value.toFixed(decimals ?? head.decimals)) > 0 ? "+" : "") + number(value, decimals);
const percent = (value, decimals = 1) => `${(100 * value).toFixed(decimals)} %`;

// The rows shown one by one, the lump of the others, the adjustment: contributions add up to the prediction.
function explain(gene, spot) {
  const prediction = predictionOf(gene, spot);
  const evidence = evidenceOf(gene, spot);
  if (!Number.isFinite(prediction)) return null;
  const lines = [];
  if (!head.cites) {
    lines.push({ kind: "mean", weight: 1, contribution: evidence });
  } else {
    const nGenes = head.genes.length;
    const nShown = head.blocks.neighbours.shape[1];
    let votes = 0;
    for (let p = 0; p < head.blocks.votes.shape[0]; p++) {
      if (data.masks[p * nGenes + gene]) votes += data.votes[p * nSpots + spot];
    }
    const level = data.levels[data.level_of[spot] * nGenes + gene];
    // What retrieval says counts by its share; the mean of the reference holds the rest of it.
    const share = votes > 0 ? head.genes[gene].share : 0;
    const mean = (1 - share) * (data.means[gene] + level);
    let [weight, contribution] = [share, evidence - mean];
    for (let j = 0; j < nShown; j++) {
      const row = data.neighbours[spot * nShown + j];
      if (row < 0) break;
      const line = { kind: "neighbour", row };
      if (data.masks[data.cited_mask[row] * nGenes + gene]) {
        line.weight = (share * data.weights[spot * nShown + j]) / votes;
        line.value = data.cited_values[gene * head.names.cited.length + row] / unitStep;
        line.correction = data.corrections[data.cited_section[row] * nGenes + gene] + level;
        line.contribution = line.weight * (line.value + line.correction);
      } else {
        Object.assign(line, { weight: 0, value: NaN, correction: NaN, contribution: 0 });
      }
      weight -= line.weight;
      contribution -= line.contribution;
      lines.push(line);
    }
    lines.sort((one, other) => other.weight - one.weight);
    const count = data.n_cited[spot] - lines.length;
    if (count > 0) lines.push({ kind: "others", count, weight: Math.max(0, weight), contribution });
    if (share < 1) lines.push({ kind: "mean", weight: 1 - share, contribution: mean });
  }
  lines.push({ kind: "adjustment", contribution: adjustmentOf(gene, spot) });
  lines.push({ kind: "total", contribution: prediction });
  return lines;
}

const citesNobody = () => (head.regression
  ? "No measured spot is cited: this value rests on a regression over all rows of the reference"
  : `Method ${head.method} cites no measured spots: this value cannot be traced to any`);

function geneDoubt(gene) {
  const { trust } = head.genes[gene];
  if (trust === null) return "not assessed on held-out donors";
  if (trust < head.little_trust) return `correlates ${number(trust, 2)} with the truth on held-out donors: not to be trusted`;
  return "";
}

// Two checks can mark a spot: the space of search, where sections may have been standardised, and the look of it as it is.
function outOfReference(spot) {
  if (isOutside(spot)) return ["it lies outside the image"];
  const unlike = data.appearance_distance[spot] > 1;
  const far = data.distance_percentile[spot] > head.far_percentile;
  const why = [];
  if (far || !unlike) why.push("no measured tissue looks like this spot as compared with others of its section");
  if (unlike) why.push("it looks unlike every section of the reference");
  return why;
}

function warningsOf(gene, spot) {
  const found = [];
  const share = data.evidence_share[spot];
  if (data.out_of_reference[spot]) {
    found.push(...outOfReference(spot).map((why) => `Out of reference: ${why}.`));
  }
  if (!head.cites) found.push(`${citesNobody()}.`);
  if (head.cites && data.n_donors[spot] === 1) found.push("All measured spots it rests on come from one donor.");
  if (head.cites && share < head.little_evidence) found.push(`Only ${percent(share, 0)} of its departure from the mean is evidence.`);
  const doubt = geneDoubt(gene);
  if (doubt) found.push(`Gene ${head.genes[gene].name}: ${doubt}.`);
  if (head.interval && head.interval.unit !== "donor" && intervalOf(gene, spot)) {
    found.push(`The interval rests on held-out errors counted by ${head.interval.unit}, not by donor: on a new donor it may be too narrow.`);
  }
  return found;
}
