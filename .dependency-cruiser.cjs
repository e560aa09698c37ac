/** Dependencies point one way: cli, console -> workflows, activities, miner -> platform -> domain. */
const below = (from, to, why) => ({ name: why, severity: 'error', from: { path: from }, to: { path: to } });

/** @type {import('dependency-cruiser').IConfiguration} */
module.exports = {
  forbidden: [
    { name: 'no-circles', severity: 'error', from: {}, to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only'] } } },
    below('^src/domain/', '^src/(?!domain/)', 'domain-knows-nothing'),
    { name: 'domain-does-no-io', severity: 'error', from: { path: '^src/domain/' }, to: { dependencyTypes: ['core'] } },
    below('^src/platform/', '^src/(cli|console|workflows|activities|miner)/', 'platform-knows-domain-only'),
    below('^src/(activities|miner)/', '^src/(cli|console)/', 'nobody-depends-on-the-command-line'),
    below('^src/miner/', '^src/(activities|workflows)/', 'miner-serves-without-the-flywheel'),
    below('^src/activities/', '^src/miner/', 'activities-do-not-reach-into-the-miner'),
    {
      name: 'activities-know-workflows-by-type-or-id',
      severity: 'error',
      from: { path: '^src/activities/' },
      to: { path: '^src/workflows/', pathNot: '^src/workflows/(types|ids|jobTypes|messages)\\.ts$', dependencyTypesNot: ['type-only'] },
    },
    {
      name: 'workflows-import-domain-and-types',
      severity: 'error',
      from: { path: '^src/workflows/' },
      to: { path: '^src/(?!workflows/|domain/)', dependencyTypesNot: ['type-only'] },
    },
    { name: 'workflows-use-no-built-ins', severity: 'error', from: { path: '^src/workflows/' }, to: { dependencyTypes: ['core'] } },
    { name: 'no-missing-dependency', severity: 'error', from: {}, to: { couldNotResolve: true } },
    {
      name: 'no-test-tools-in-the-product',
      severity: 'error',
      from: { path: '^src/' },
      to: { dependencyTypes: ['npm-dev'], dependencyTypesNot: ['type-only'] },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: 'specify',
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: {
      exportsFields: ['exports'],
      conditionNames: ['import', 'require', 'node', 'default'],
      extensions: ['.ts', '.js', '.json'],
    },
  },
};
