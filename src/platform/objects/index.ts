/**
 * Object stores: immutable bytes named by their SHA-256. Here: a folder of this machine.
 * What objects mean belongs to the catalog, never here.
 */
export { FileObjectStore } from './file.js';
