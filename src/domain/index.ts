/**
 * Domain: the rules of the flywheel as pure functions over plain data: reward, verdict, decay, pools, labels, money.
 * No I/O, no clock, no unseeded randomness, no Node built-ins: every file may be loaded in Temporal's workflow sandbox.
 * Import the file you need, not this one; what touches the world belongs to `src/platform` or `src/activities`.
 */
export {};
