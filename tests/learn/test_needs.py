"""What a recipe needs and where its jumps end, read off its terms."""

from flowmaps.core.autodiff import Derivative
from flowmaps.learn.endpoints import Endpoint
from flowmaps.learn.objective import Recipe, Term
from flowmaps.learn.rules import Compositional, DiagonalRule, Eulerian
from flowmaps.learn.states import Prior, Stored, Trajectory
from flowmaps.learn.times import Diagonal, SortedPair, ToData, Uniform

ANY, DATA, EQUAL = SortedPair(Uniform()), ToData(Uniform()), Diagonal(Uniform())


def recipe(*terms: Term) -> Recipe:
    return Recipe(name="any", cite=(), terms=terms, ema_target=0.9)


def of(rule, times) -> Term:
    return Term(rule=rule, times=times, share=0.5)


def test_maps_to_data_jump_nowhere_else() -> None:
    """Steps of length 0 do not count, and a recipe of nothing but those is no map to data."""
    assert recipe(Term(rule=Eulerian(), times=DATA)).to_data
    assert recipe(of(Eulerian(), DATA), of(DiagonalRule(), EQUAL)).to_data
    assert not recipe(Term(rule=DiagonalRule(), times=EQUAL)).to_data
    assert not recipe(Term(rule=Eulerian(), times=ANY)).to_data
    assert not recipe(of(Compositional(), ANY), of(Eulerian(), DATA)).to_data


def test_derivatives_of_the_network_are_taken_where_a_rule_takes_them_exactly() -> None:
    finite = Eulerian(derivative=Derivative("finite", 0.05))
    assert not recipe(Term(rule=finite, times=ANY)).needs_jvp
    assert not recipe(Term(rule=Compositional(), times=ANY)).needs_jvp
    assert recipe(of(DiagonalRule(), EQUAL), of(Eulerian(), ANY)).needs_jvp


def test_data_is_needed_where_points_come_from_it() -> None:
    own = Term(rule=Eulerian("teacher"), times=ANY, state=Prior())
    made = Term(rule=Endpoint(), times=ANY, state=Trajectory())
    stored = Term(rule=Endpoint(), times=ANY, state=Stored())
    plain = Term(rule=Eulerian(), times=ANY)
    assert not recipe(own).needs_data
    assert not recipe(made).needs_data
    assert recipe(stored).needs_data
    assert recipe(plain).needs_data
    assert recipe(
        of(DiagonalRule(), EQUAL), Term(rule=own.rule, times=ANY, state=Prior(), share=0.5)
    ).needs_data
    assert recipe(own).needs_teacher
    assert not recipe(plain).needs_teacher
    assert recipe(Term(rule=Compositional("ema"), times=ANY)).sources == {"ema"}
