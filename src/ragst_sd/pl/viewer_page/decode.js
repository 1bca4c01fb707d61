// What the page carries: numbers as compressed bytes, pictures as JPEG.

const head = JSON.parse(document.getElementById("head").textContent);

function carried(kind, name) {
  return document.querySelector(`script[data-kind="${kind}"][data-name="${name}"]`);
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

async function unpack(name) {
  const element = carried("numbers", name);
  const packed = new Blob([fromBase64(element.textContent)]);
  element.remove(); // the text is not needed twice
  const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const ARRAYS = {
  int16: Int16Array, int32: Int32Array, uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array,
};

// Bytes come plane by plane: all first bytes, then all second ones.
async function readArray(name) {
  const { dtype } = head.blocks[name];
  const planes = await unpack(name);
  const size = ARRAYS[dtype].BYTES_PER_ELEMENT;
  const length = planes.length / size;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < size; plane++) {
    const start = plane * length;
    for (let i = 0; i < length; i++) bytes[i * size + plane] = planes[start + i];
  }
  return new ARRAYS[dtype](bytes.buffer);
}

async function readNumbers() {
  const data = {};
  await Promise.all(Object.keys(head.blocks).map(async (name) => { data[name] = await readArray(name); }));
  return data;
}

const pictures = new Map();

// A decoded picture; the last few are kept, since spots that are looked at lie side by side.
async function readPicture(kind, name) {
  const key = `${kind}/${name}`;
  if (!pictures.has(key)) {
    const element = carried(kind, name);
    if (!element) return null;
    const image = new Image();
    image.src = `data:image/jpeg;base64,${element.textContent}`;
    pictures.set(key, image.decode().then(() => image));
    const sheets = [...pictures.keys()].filter((one) => one !== "section/0");
    if (sheets.length > 24) pictures.delete(sheets[0]);
  }
  return pictures.get(key);
}

// Draws tile number `index` of the sheets of one kind so that it fills a canvas.
async function drawTile(canvas, kind, index, edge, wanted = () => true) {
  const across = Math.floor(head.image.sheet_px / edge);
  const place = index % (across * across);
  const sheet = await readPicture(kind, Math.floor(index / (across * across)));
  if (!sheet || !wanted()) return;
  canvas.width = canvas.height = edge;
  const [x, y] = [place % across, Math.floor(place / across)];
  canvas.getContext("2d").drawImage(sheet, x * edge, y * edge, edge, edge, 0, 0, edge, edge);
}
