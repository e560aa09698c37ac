/** Whether a process is there; one that ended and was not waited for yet counts as there. */
export function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
