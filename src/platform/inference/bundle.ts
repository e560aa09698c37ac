/** Bundles on disk: laid out from the object store, and verified file by file whenever one is loaded. */
import { randomBytes } from 'node:crypto';
import { constants, promises as fs } from 'node:fs';
import path from 'node:path';
import { Bundle, memberFiles } from '../../domain/contracts/bundle.js';
import type { Digest } from '../../domain/contracts/common.js';
import { BadInputError, ObjectCorruptError } from '../../domain/errors.js';
import { parseJson, syncDir } from '../fsutil.js';
import { sha256, sha256File } from '../objects/file.js';
import type { ObjectStore } from '../ports.js';

export const BUNDLE_FILE = 'bundle.json';

/** Every file a bundle names, each once. */
function filesOf(bundle: Bundle): { path: string; sha256: Digest; bytes: number }[] {
  const files = new Map<string, { path: string; sha256: Digest; bytes: number }>();
  for (const member of bundle.members) {
    for (const file of memberFiles(member)) {
      const same = files.get(file.path);
      if (same !== undefined && same.sha256 !== file.sha256)
        throw new BadInputError(`The bundle names ${file.path} twice with different digests. It was not used.`);
      if (file.path === BUNDLE_FILE) throw new BadInputError(`The bundle names ${BUNDLE_FILE} itself as a member's file. It was not used.`);
      files.set(file.path, file);
    }
  }
  return [...files.values()];
}

function parseBundle(bytes: Uint8Array, name: string): Bundle {
  const bundle = parseJson(Buffer.from(bytes).toString('utf8'), Bundle, name);
  const total = bundle.members.reduce((sum, member) => sum + member.weight, 0);
  if (Math.abs(total - 1) > 1e-6)
    throw new BadInputError(`The weights of the members in ${name} sum to ${total}, not 1. The bundle was not used.`);
  if (new Set(bundle.members.map((member) => member.name)).size !== bundle.members.length)
    throw new BadInputError(`Two members in ${name} have the same name. The bundle was not used.`);
  return bundle;
}

/** The bundle as its file says, without verifying anything: to plan with. null when it cannot be read. */
export async function peekBundle(dir: string): Promise<Bundle | null> {
  try {
    return Bundle.parse(JSON.parse(await fs.readFile(path.join(dir, BUNDLE_FILE), 'utf8')));
  } catch {
    return null;
  }
}

/**
 * Reads a bundle folder and verifies the size and SHA-256 of every file it names.
 * @param expected digest of bundle.json; given, that is verified too. A folder named by a digest is held to its name
 * @throws BadInputError when the folder or bundle.json is missing or wrong, ObjectCorruptError when bytes do not hash to their digest
 */
export async function loadBundle(dir: string, expected?: Digest): Promise<Bundle> {
  const file = path.join(dir, BUNDLE_FILE);
  let bytes: Buffer;
  try {
    bytes = await fs.readFile(file);
  } catch (error) {
    throw new BadInputError(`The bundle ${dir} cannot be read: ${(error as Error).message}. What was served before goes on being served.`);
  }
  const base = path.basename(dir);
  const wanted = expected ?? (/^[0-9a-f]{64}$/.test(base) ? base : undefined);
  const actual = sha256(bytes);
  if (wanted !== undefined && actual !== wanted) {
    throw new ObjectCorruptError(
      `${file} hashes to ${actual}, not ${wanted}: the bundle was changed after it was made and is not used. Remove the folder; it is laid out again from the object store.`,
    );
  }
  const bundle = parseBundle(bytes, file);
  for (const named of filesOf(bundle)) {
    const at = path.join(dir, named.path);
    let size: number;
    try {
      ({ size } = await fs.stat(at));
    } catch (error) {
      throw new ObjectCorruptError(
        `The bundle ${dir} lacks ${named.path}: ${(error as Error).message}. It is not used. Remove the folder; it is laid out again from the object store.`,
      );
    }
    const digest = size === named.bytes ? await sha256File(at) : `(${size} bytes instead of ${named.bytes})`;
    if (digest !== named.sha256) {
      throw new ObjectCorruptError(
        `${at} is damaged: ${digest}, expected ${named.sha256}. The bundle is not used. Remove the folder; it is laid out again from the object store.`,
      );
    }
  }
  return bundle;
}

/**
 * Lays a bundle out as a folder, from objects, by hard links where the file system allows and copies elsewhere. The
 * folder appears whole, by rename. One that is there and verifies is kept; a damaged one is replaced.
 * @param digest SHA-256 of bundle.json
 * @throws ObjectMissingError, ObjectCorruptError, BadInputError (not a bundle); a folder that was there stays then
 */
export async function materialise(objects: Pick<ObjectStore, 'get' | 'path'>, digest: Digest, dir: string): Promise<void> {
  const there = await fs.access(dir).then(
    () => true,
    () => false,
  );
  if (there) {
    try {
      await loadBundle(dir, digest);
      return;
    } catch (error) {
      if (!(error instanceof BadInputError || error instanceof ObjectCorruptError)) throw error;
    }
  }
  const bytes = await objects.get(digest);
  const bundle = parseBundle(bytes, `bundle ${digest}`);
  await fs.mkdir(path.dirname(dir), { recursive: true });
  const aside = path.join(path.dirname(dir), `.tmp-${process.pid}-${randomBytes(6).toString('hex')}`);
  try {
    await fs.mkdir(aside, { mode: 0o755 });
    for (const file of filesOf(bundle)) {
      const target = path.join(aside, file.path);
      await fs.mkdir(path.dirname(target), { recursive: true });
      await linkOrCopy(objects, file.sha256, target);
    }
    await fs.writeFile(path.join(aside, BUNDLE_FILE), bytes, { mode: 0o644 });
    await loadBundle(aside, digest);
    await syncDir(aside);
    await replaceDir(aside, dir, digest);
    await syncDir(path.dirname(dir));
  } finally {
    await fs.rm(aside, { recursive: true, force: true });
  }
}

async function linkOrCopy(objects: Pick<ObjectStore, 'get' | 'path'>, digest: Digest, target: string): Promise<void> {
  try {
    await fs.link(objects.path(digest), target);
    return;
  } catch (error) {
    // Another file system, no permission to link, too many links: a copy does as well.
    if (!['EXDEV', 'EPERM', 'EMLINK', 'ENOTSUP', 'EACCES', 'ENOSYS', 'ENOENT'].includes((error as NodeJS.ErrnoException).code ?? ''))
      throw error;
  }
  try {
    await fs.copyFile(objects.path(digest), target, constants.COPYFILE_FICLONE);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    // Not a local path (another store), or really missing: then `get` says so with the store's own error.
    await fs.writeFile(target, await objects.get(digest));
  }
}

/** Moves `aside` to `dir`. Of two that lay out the same bundle at once, either result is good. */
async function replaceDir(aside: string, dir: string, digest: Digest): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    try {
      await fs.rename(aside, dir);
      return;
    } catch (error) {
      if (!['ENOTEMPTY', 'EEXIST', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '') || attempt >= 5) throw error;
    }
    try {
      await loadBundle(dir, digest);
      return;
    } catch {
      // Damaged, so it goes; a process that loaded it has read its files already.
      const old = `${aside}-old${attempt}`;
      await fs.rename(dir, old).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOENT') throw error;
      });
      await fs.rm(old, { recursive: true, force: true });
    }
  }
}
