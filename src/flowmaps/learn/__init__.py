"""How a flow map is learned: a loss is a sum of terms, a term is a rule on a law of times.

The vocabulary, to be read in this order:

    rules       what holds of the exact map: diagonal, Eulerian, Lagrangian, compositional; who answers for velocities and jumps
    times       where it must hold: laws of times and of jumps (s, w, t)
    weights     how its error is measured: spaces, metrics, weights of time, tangent transforms
    term        one rule, on one law, measured
    objective   a recipe is a sum of terms; what is drawn for a step, and what is computed from it

What other methods need beside it, each file for itself:

    guidance    classifier-free guidance folded into the map
    ramps       what changes while a run goes on
    jumps       laws of jumps of single methods
    legs        the rule of a finite first leg (consistency models, alpha-Flow); splits: its laws of times
    outputs     rules about the network's own output (sCM, rCM, pixel MeanFlow)
    endpoints   rules about known endpoints (CMT, reflow) and about the way there and back (flow map matching)
    particles   laws compared by groups of particles (IMM, the push-forward rule)
    states      points from elsewhere: the prior, a teacher's trajectory, coupled pairs, the student itself
    masks       dropout that the evaluations of a rule share
    cost        forward passes per training sample, counted on the recipe's own loss
"""
