/** Drawn images for tests: plain colours and seeded noise; no photographs. */
import sharp from 'sharp';

/** A JPEG of one colour, quality 75 like a validator's. */
export async function colourJpeg(colour: { r: number; g: number; b: number }, width = 224, height = 224): Promise<Buffer> {
  return sharp({ create: { width, height, channels: 3, background: colour } })
    .jpeg({ quality: 75 })
    .toBuffer();
}

/** A grey JPEG; level 0 is black, 255 white. The 8 bits of `seed` are drawn in its corner, so that images differ. */
export async function greyJpeg(level: number, seed = 0, size = 224): Promise<Buffer> {
  const pixels = Buffer.alloc(size * size, level);
  for (let bit = 0; bit < 16; bit++) {
    if (((seed >> bit) & 1) === 0) continue;
    for (let y = 0; y < 8; y++) for (let x = 0; x < 8; x++) pixels[y * size + bit * 8 + x] = 255 - level;
  }
  return sharp(pixels, { raw: { width: size, height: size, channels: 1 } })
    .jpeg({ quality: 75 })
    .toBuffer();
}
