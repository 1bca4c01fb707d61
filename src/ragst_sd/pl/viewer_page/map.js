// The map: tissue, spots and marks on three canvases. Places are in pixels of the image, from the corner of the part shown.

const stage = document.getElementById("stage");
const canvases = ["picture", "spots", "map"].map((id) => document.getElementById(id));
const [pictureLayer, spotLayer, markLayer] = canvases;
const view = { scale: 1, left: 0, top: 0, fit: 1 };
const mapState = { colours: new Uint32Array(nSpots), selected: -1, hovered: -1, section: null, buffer: null };
const HOLLOW = 0; // a spot without a value

function layoutMap() {
  const { clientWidth: width, clientHeight: height } = stage;
  if (!width || !height) return;
  const ratio = window.devicePixelRatio || 1;
  const whole = view.scale === view.fit;
  for (const canvas of canvases) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  mapState.buffer = spotLayer.getContext("2d").createImageData(spotLayer.width, spotLayer.height);
  view.fit = 0.97 * Math.min(width / head.image.width, height / head.image.height);
  if (whole) fitMap(); else drawMap();
}

function fitMap() {
  view.scale = view.fit;
  view.left = (stage.clientWidth - head.image.width * view.scale) / 2;
  view.top = (stage.clientHeight - head.image.height * view.scale) / 2;
  drawMap();
}

function zoomMap(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const scale = Math.min(Math.max(view.scale * factor, view.fit / 2), view.fit * 200);
  view.left = x - ((x - view.left) * scale) / view.scale;
  view.top = y - ((y - view.top) * scale) / view.scale;
  view.scale = scale;
  drawMap();
}

function moveMap(dx, dy) {
  const inside = (start, length, room) => Math.min(Math.max(start, 40 - length), room - 40);
  view.left = inside(view.left + dx, head.image.width * view.scale, stage.clientWidth);
  view.top = inside(view.top + dy, head.image.height * view.scale, stage.clientHeight);
  drawMap();
}

const onScreen = (spot) => [data.xy[2 * spot] * view.scale + view.left, data.xy[2 * spot + 1] * view.scale + view.top];

function showSpot(spot) {
  const [x, y] = onScreen(spot);
  const { clientWidth: width, clientHeight: height } = stage;
  if (x < 30 || y < 30 || x > width - 30 || y > height - 30) moveMap(width / 2 - x, height / 2 - y);
}

let waiting = false;
function drawMap() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (!mapState.buffer) return;
    const start = performance.now();
    drawPicture();
    drawSpots();
    drawMarks();
    Object.assign(markLayer.dataset, {
      scale: view.scale, left: view.left, top: view.top, redrawMs: (performance.now() - start).toFixed(1),
    });
  });
}

function drawPicture() {
  const ratio = window.devicePixelRatio || 1;
  const context = pictureLayer.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, pictureLayer.width, pictureLayer.height);
  if (!mapState.section) return;
  context.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.left, ratio * view.top);
  context.drawImage(mapState.section, ...head.image.picture);
}

// Spots are painted pixel by pixel: the time follows the area they cover, and 20,000 take no longer than a few.
function drawSpots() {
  const ratio = window.devicePixelRatio || 1;
  const { width, height } = mapState.buffer;
  const pixels = new Uint32Array(mapState.buffer.data.buffer);
  pixels.fill(0);
  const [scale, left, top] = [view.scale * ratio, view.left * ratio, view.top * ratio];
  for (let i = 0; i < nSpots; i++) {
    const [x, y] = [data.xy[2 * i] * scale + left, data.xy[2 * i + 1] * scale + top];
    const radius = Math.max(data.radius[i] * scale, 0.8);
    if (x + radius < 0 || y + radius < 0 || x - radius >= width || y - radius >= height) continue;
    const hollow = mapState.colours[i] === HOLLOW;
    const colour = hollow ? 0xff6b6b6b : mapState.colours[i];
    const rim = radius > 3 && (hollow || data.out_of_reference[i]) ? radius - Math.min(2.2 * ratio, 0.35 * radius) : radius + 1;
    const [x0, x1] = [Math.max(0, Math.floor(x - radius)), Math.min(width - 1, Math.ceil(x + radius))];
    const [y0, y1] = [Math.max(0, Math.floor(y - radius)), Math.min(height - 1, Math.ceil(y + radius))];
    for (let v = y0; v <= y1; v++) {
      for (let u = x0; u <= x1; u++) {
        const [dx, dy] = [Math.abs(u + 0.5 - x), Math.abs(v + 0.5 - y)];
        const distance = head.image.square ? Math.max(dx, dy) : Math.sqrt(dx * dx + dy * dy);
        const cover = Math.min(1, radius + 0.5 - distance);
        if (cover <= 0) continue;
        const onRim = distance > rim;
        if (hollow && !onRim) continue;
        const at = v * width + u;
        const alpha = (255 * cover) | 0;
        if (pixels[at] >>> 24 < alpha) pixels[at] = (((onRim && !hollow ? 0x000000 : colour) & 0xffffff) | (alpha << 24)) >>> 0;
      }
    }
  }
  spotLayer.getContext("2d").putImageData(mapState.buffer, 0, 0);
}

function drawMarks() {
  const ratio = window.devicePixelRatio || 1;
  const context = markLayer.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, stage.clientWidth, stage.clientHeight);
  const ring = (spot, room, inner, outer) => {
    const [x, y] = onScreen(spot);
    const radius = Math.max(data.radius[spot] * view.scale, 2) + room;
    for (const [colour, width] of [[outer, 5], [inner, 2.5]]) {
      context.beginPath();
      if (head.image.square) context.rect(x - radius, y - radius, 2 * radius, 2 * radius);
      else context.arc(x, y, radius, 0, 2 * Math.PI);
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.stroke();
    }
  };
  if (mapState.hovered >= 0) ring(mapState.hovered, 1, "#1a1a1a", "#ffffff");
  if (mapState.selected >= 0) {
    drawFields(context, mapState.selected);
    ring(mapState.selected, 4, "#009e73", "#ffffff");
    ring(mapState.selected, 1, "#ffffff", "#1a1a1a");
  }
  drawScaleBar(context);
}

// What the encoder saw of a spot: its tile, and wider fields of view broken.
function drawFields(context, spot) {
  const [x, y] = onScreen(spot);
  head.image.fields.forEach((width, i) => {
    const edge = width * view.scale;
    for (const [colour, line] of [["#ffffff", 4], ["#009e73", 2]]) {
      context.setLineDash(i ? [7, 5] : []);
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(x - edge / 2, y - edge / 2, edge, edge);
    }
  });
  context.setLineDash([]);
}

function drawScaleBar(context) {
  const { mpp } = head.image;
  if (!mpp) return;
  const longest = (0.2 * stage.clientWidth * mpp) / view.scale;
  const power = 10 ** Math.floor(Math.log10(longest));
  const length = Math.max(...[1, 2, 5].map((step) => step * power).filter((one) => one <= longest));
  const width = (length / mpp) * view.scale;
  const [x, y] = [12, stage.clientHeight - 14];
  context.fillStyle = "rgba(255, 255, 255, 0.85)";
  context.fillRect(x - 6, y - 22, width + 12, 32);
  context.fillStyle = "#1a1a1a";
  context.fillRect(x, y, width, 5);
  context.font = "12px system-ui, 'Liberation Sans', sans-serif";
  context.fillText(length >= 1000 ? `${length / 1000} mm` : `${length} µm`, x, y - 5);
}

// The nearest spot, if it is not further than `reach`; a pointer over it is near enough.
function spotAt(x, y, reach = 0) {
  let [best, nearest] = [-1, Infinity];
  for (let i = 0; i < nSpots; i++) {
    const [sx, sy] = onScreen(i);
    const distance = Math.hypot(sx - x, sy - y);
    if (distance < nearest && distance <= Math.max(1.2 * data.radius[i] * view.scale, 6, reach)) [best, nearest] = [i, distance];
  }
  return best;
}

// The next spot in a direction: near, and little to the side.
function spotTowards(from, dx, dy) {
  let [best, least] = [from, Infinity];
  for (let i = 0; i < nSpots; i++) {
    const [x, y] = [data.xy[2 * i] - data.xy[2 * from], data.xy[2 * i + 1] - data.xy[2 * from + 1]];
    const [along, aside] = [x * dx + y * dy, Math.abs(x * dy - y * dx)];
    if (along <= 0 || aside > 1.5 * along) continue;
    const cost = along + 2 * aside;
    if (cost < least) [best, least] = [i, cost];
  }
  return best;
}
