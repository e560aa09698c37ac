import { it } from 'vitest';
import { judge } from '../../src/domain/verdict.js';
import { goodGates, paired } from './support.js';
const config={marginAccuracy:.01,alpha:.005,minGroupsPerClass:40};
it('time',()=>{
  const rows=paired({groups:200,perGroup:2,champion:.9,candidate:.95,seed:1});
  const t=performance.now();const v=judge({rows,gates:goodGates,config,resamples:2000,seed:1});console.log('ms',performance.now()-t);console.log(v.reason,v.needGroups);
  for (const [ch,ca,g,pg] of [[.9,.9,120,3],[.9,.97,120,3],[.9,.97,400,3],[.97,.9,120,3],[.9,.97,12,3],[.9,.92,200,2]] as const){
    const c:Record<string,number>={};let last='';
    for(let s=0;s<60;s++){const v=judge({rows:paired({groups:g,perGroup:pg,champion:ch,candidate:ca,seed:s}),gates:goodGates,config,resamples:400,seed:s});c[v.decision]=(c[v.decision]??0)+1;last=v.reason}
    console.log(ch,ca,g,pg,c,last);
  }
},120000);
