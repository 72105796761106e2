"""Contracts: what every method of a role must satisfy. A new method subclasses its role's contract and inherits the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from distill.objectives.base import Objective, StateObjective, TeacherTargets
from distill.regularisers.base import Regulariser, Step
from quantize.config import QuantizeSection
from recommender.beyond import overlap
from recommender.config import StudentSection
from recommender.ranking import Recommender
from recommender.runtimes import open_graph
from recommender.runtimes.base import GraphRecommender
from recommender.student import Student, StudentRecommender

NUM_POSITIONS, NUM_ITEMS, TOP_K, TEMPERATURE = 7, 12, 5, 2.0
STUDENT_WIDTH = 8


class RegulariserContract:
    """Subclasses define `make`."""

    def make(self) -> Regulariser:
        raise NotImplementedError

    @staticmethod
    def step(num_histories: int = 6, training: bool = False) -> Step:
        """Histories of different lengths over 40 items with text, the labels shifted by one."""
        torch.manual_seed(0)
        text_IZ = torch.randn(41, 5)
        student = Student(StudentSection(hidden_size=16, num_layers=2, max_length=12, dropout=0.2), 40, text_IZ)
        student.train(training)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        sequence_BL = torch.randint(1, 41, (num_histories, 11))
        for row in range(1, num_histories):
            sequence_BL[row, : row - 1] = 0
        history_BL, label_BL = sequence_BL[:, :-1], sequence_BL[:, 1:] * (sequence_BL[:, :-1] > 0)
        return Step(student, student.items(), history_BL, label_BL, torch.arange(num_histories))

    def loss(self, step: Step, seed: int = 1) -> torch.Tensor:
        torch.manual_seed(seed)
        return self.make()(step)

    def test_a_finite_loss_teaches_the_student(self) -> None:
        step = self.step(training=True)
        loss = self.loss(step)
        assert loss.ndim == 0 and loss.isfinite() and loss > 0
        loss.backward()
        gradients = [p.grad for p in step.student.parameters() if p.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().max() > 1e-6 for gradient in gradients)

    @staticmethod
    def changed(step: Step) -> tuple[Step, Step]:
        """More padding in front, and the histories in another order: nothing that a loss should see."""
        wider = replace(step, history_BL=F.pad(step.history_BL, (2, 0)), label_BL=F.pad(step.label_BL, (2, 0)))
        return wider, replace(step, history_BL=step.history_BL.flip(0), label_BL=step.label_BL.flip(0))

    def test_the_same_draws_give_the_same_loss(self) -> None:
        step = self.step()
        assert self.loss(step).item() == self.loss(step).item()

    def test_descending_it_lowers_it(self) -> None:
        step = self.step()
        optimizer, losses = torch.optim.Adam(step.student.parameters(), lr=0.01), []
        for _ in range(40):
            loss = self.loss(replace(step, table_ID=step.student.items()))
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < 0.8 * losses[0]

    @pytest.mark.parametrize("labels", [1, 0], ids=["one label", "an end alone"])
    def test_next_to_nothing_is_no_error(self, labels: int) -> None:
        step = self.step(num_histories=1)
        alone = replace(step, history_BL=step.history_BL[:, :1], label_BL=step.label_BL[:, :1] * labels)
        loss = self.loss(alone)
        loss.backward()
        assert loss.isfinite()


class StateObjectiveContract:
    """Subclasses define `make` and `reference` (a slow float64 definition, states [L, *] window by window)."""

    widths: Mapping[str, int]  # of the teacher's states; the student's are all STUDENT_WIDTH wide
    lengths = (4, 1, 3)  # positions of three windows, padded on the left

    def make(self, teacher_widths: Mapping[str, int]) -> StateObjective:
        raise NotImplementedError

    def reference(self, student: list[dict[str, torch.Tensor]], teacher: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        raise NotImplementedError

    @property
    def same(self) -> dict[str, int]:
        return dict.fromkeys(self.widths, STUDENT_WIDTH)

    def states(self, widths: Mapping[str, int], seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {n: torch.randn(sum(self.lengths), w, dtype=torch.float64, generator=generator) for n, w in widths.items()}

    def keep(self, padding: int = 0) -> torch.Tensor:
        columns = torch.arange(max(self.lengths) + padding)
        return columns >= len(columns) - torch.tensor(self.lengths)[:, None]

    def by_window(self, states: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        parts = {name: state.split(self.lengths) for name, state in states.items()}
        return [{name: parts[name][window] for name in parts} for window in range(len(self.lengths))]

    def test_equals_its_slow_reference_with_gradients(self) -> None:
        teacher = self.states(self.same, 1)
        fast, slow = ({n: s.requires_grad_() for n, s in self.states(self.same, 2).items()} for _ in range(2))
        loss = self.make(self.same)(fast, teacher, self.keep())
        expected = self.reference(self.by_window(slow), self.by_window(teacher))
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        for name in self.widths:
            assert torch.allclose(fast[name].grad, slow[name].grad, atol=1e-9)  # type: ignore[arg-type]

    def test_zero_at_equality_and_never_negative(self) -> None:
        objective = self.make(self.same)
        assert objective(self.states(self.same, 1), self.states(self.same, 1), self.keep()).item() == pytest.approx(
            0, abs=1e-12
        )
        assert all(objective(self.states(self.same, s), self.states(self.same, s + 1), self.keep()) > 0 for s in range(2, 12))

    def test_padding_and_the_order_of_windows_do_not_matter(self) -> None:
        objective, student, teacher = self.make(self.same), self.states(self.same, 1), self.states(self.same, 2)
        loss = objective(student, teacher, self.keep())
        assert objective(student, teacher, self.keep(padding=3)).item() == pytest.approx(loss.item(), rel=1e-12)
        order = [2, 0, 1]
        moved = [
            {name: torch.cat([self.by_window(states)[window][name] for window in order]) for name in states}
            for states in (student, teacher)
        ]
        assert objective(*moved, self.keep()[order]).item() == pytest.approx(loss.item(), rel=1e-12)

    def test_descending_it_approaches_a_teacher_of_another_width(self) -> None:
        torch.manual_seed(0)
        objective, teacher = self.make(self.widths).double(), self.states(self.widths, 1)
        student = {name: state.requires_grad_() for name, state in self.states(self.same, 2).items()}
        optimizer, losses = torch.optim.Adam([*student.values(), *objective.parameters()], lr=0.05), []
        for _ in range(150):
            loss = objective(student, teacher, self.keep())
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < 0.5 * losses[0]


class ObjectiveContract:
    """Subclasses set `zero_at_equality` and define `make` and `reference` (a slow float64 definition)."""

    zero_at_equality = True

    def make(self) -> Objective:
        raise NotImplementedError

    def reference(
        self, student_logits_NI: torch.Tensor, teacher_logits_NI: torch.Tensor, targets: TeacherTargets
    ) -> torch.Tensor:
        raise NotImplementedError

    def loss(self, student_logits_NI: torch.Tensor, targets: TeacherTargets) -> torch.Tensor:
        return self.make()(student_logits_NI.log_softmax(-1), targets)

    @staticmethod
    def logits(seed: int) -> torch.Tensor:
        return 2 * torch.randn(NUM_POSITIONS, NUM_ITEMS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    @staticmethod
    def targets(teacher_logits_NI: torch.Tensor, k: int = TOP_K) -> TeacherTargets:
        top = (teacher_logits_NI / TEMPERATURE).softmax(-1).topk(k, dim=-1)
        return TeacherTargets(top.indices, top.values, TEMPERATURE)

    @pytest.mark.parametrize("k", [1, TOP_K, NUM_ITEMS])
    def test_equals_its_slow_reference_with_gradients(self, k: int) -> None:
        teacher, fast, slow = self.logits(1), self.logits(2).requires_grad_(), self.logits(2).requires_grad_()
        targets = self.targets(teacher, k)
        loss, expected = self.loss(fast, targets), self.reference(slow, teacher, targets)
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert fast.grad is not None
        assert torch.allclose(fast.grad, slow.grad, atol=1e-7)

    def test_zero_at_equality_and_never_negative(self) -> None:
        if self.zero_at_equality:
            assert self.loss(self.logits(1), self.targets(self.logits(1))).item() == pytest.approx(0, abs=1e-7)
        assert all(self.loss(self.logits(s), self.targets(self.logits(s + 1))).item() > 0 for s in range(2, 12))

    def test_descending_it_approaches_the_teacher(self) -> None:
        student, targets = self.logits(2).requires_grad_(), self.targets(self.logits(1))
        optimizer = torch.optim.Adam([student], lr=0.1)
        first = self.loss(student, targets).item()
        for _ in range(100):
            optimizer.zero_grad()
            loss = self.loss(student, targets)
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.5 * first

    def test_order_of_positions_and_of_items_does_not_matter(self) -> None:
        student, teacher = self.logits(2), self.logits(1)
        loss = self.loss(student, self.targets(teacher))
        rows, columns = torch.randperm(NUM_POSITIONS), torch.randperm(NUM_ITEMS)
        moved = self.loss(student[rows][:, columns], self.targets(teacher[rows][:, columns]))
        assert moved.item() == pytest.approx(loss.item(), rel=1e-9)

    def test_it_is_a_mean_over_positions(self) -> None:
        """So that training may score a few of them at a time."""
        student, teacher = self.logits(2), self.logits(1)
        each = [self.loss(student[n : n + 1], self.targets(teacher[n : n + 1])).item() for n in range(NUM_POSITIONS)]
        assert self.loss(student, self.targets(teacher)).item() == pytest.approx(sum(each) / NUM_POSITIONS, rel=1e-9)

    def test_extreme_logits_stay_finite(self) -> None:
        student = (self.logits(2).float() * 1e4).requires_grad_()
        loss = self.loss(student, self.targets(self.logits(1).float()))
        loss.backward()
        assert torch.isfinite(loss)
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()

    def test_bad_weight_is_refused(self) -> None:
        with pytest.raises(ValueError, match="weight"):
            type(self.make().options)(weight=-1)


class RecommenderContract:
    """Subclasses define the fixture `opened`, the `student` in some form, and the bounds that its precision can hold."""

    min_overlap = 1.0
    max_score_difference = 1e-4

    @pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 300), (2, 7), (64, 16)])
    def test_it_answers_as_pytorch_at_any_shape(self, opened: Recommender, student: Student, batch: int, length: int) -> None:
        history_BL = np.random.default_rng(batch).integers(0, 200, (batch, length))
        index_BK, score_BK = opened.recommend(history_BL, 20)
        expected_BK, expected_score_BK = StudentRecommender(student).recommend(history_BL, 20)
        assert (index_BK.dtype, score_BK.dtype, index_BK.shape) == (np.int64, np.float32, (batch, 20))
        assert overlap(index_BK, expected_BK).mean() >= self.min_overlap
        assert np.abs(score_BK - expected_score_BK).max() <= self.max_score_difference
        for seen, recommended in zip(history_BL, index_BK, strict=True):
            assert not set(seen) & set(recommended)

    def test_an_answer_is_not_overwritten_by_the_next(self, opened: Recommender) -> None:
        first = opened.recommend(np.array([[3, 1]]), 5)
        before = [part.copy() for part in first]
        opened.recommend(np.array([[9, 4]]), 5)
        assert all((part == same).all() for part, same in zip(first, before, strict=True))


class RuntimeContract(RecommenderContract):
    """Of an exported graph; `opens` is the class of `opened`."""

    opens: type[GraphRecommender]

    def test_it_is_of_its_class(self, opened: GraphRecommender) -> None:
        assert type(opened) is self.opens

    def test_fewer_can_be_asked_for_and_more_cannot(self, opened: GraphRecommender) -> None:
        history_BL = np.array([[3, 1]])
        assert opened.recommend(history_BL, 5)[0].tolist() == opened.recommend(history_BL, opened.k)[0][:, :5].tolist()
        with pytest.raises(ValueError, match=r"export.k >= 21"):
            opened.recommend(history_BL, opened.k + 1)

    def test_it_speaks_the_ids_of_the_catalogue(self, opened: GraphRecommender) -> None:
        ids = opened.item_ids()
        with pytest.raises(ValueError, match="has no input 'exclude'"):
            opened.recommend_ids([[ids[2]]], 4, exclude=[[ids[0]]])
        found, of_nothing = opened.recommend_ids([[ids[2], "nobody's", ids[6]], []], 4)
        index_BK, score_BK = opened.recommend(np.array([[3, 7], [0, 0]]), 4)
        for own, index_K, score_K in zip((found, of_nothing), index_BK, score_BK, strict=True):
            assert [item_id for item_id, _ in own] == [ids[index - 1] for index in index_K]
            assert [score for _, score in own] == pytest.approx(score_K.tolist(), rel=1e-5)

    def test_it_says_what_it_runs_on(self, opened: GraphRecommender) -> None:
        assert opened.device in ("cpu", "cuda", "remote")
        assert opened.precision in ("fp32", "bf16", "fp16", "the server's")


class GraphQuantizerContract:
    """Subclasses set `method` (a module with `quantize`), and the bounds its bit width can hold on a random student."""

    method: object
    min_overlap: float
    max_bytes_ratio: float
    float_table = False  # where the format has no look-up in fewer bits, one copy of the item table stays
    runtime = "onnxruntime"

    @pytest.fixture
    def quantized(self, exported_graph: onnx.ModelProto) -> onnx.ModelProto:
        return self.quantize(exported_graph)

    def quantize(self, model: onnx.ModelProto) -> onnx.ModelProto:
        rng = np.random.default_rng(1)
        calibration = [{"history": rng.integers(1, 200, (16, 12))} for _ in range(4)]
        return self.method.quantize(model, QuantizeSection(), calibration)  # type: ignore[attr-defined]

    def test_source_is_left_alone(self, exported_graph: onnx.ModelProto) -> None:
        before = exported_graph.SerializeToString()
        self.quantize(exported_graph)
        assert exported_graph.SerializeToString() == before

    def test_it_is_smaller(self, exported_graph: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
        assert quantized.ByteSize() < self.max_bytes_ratio * exported_graph.ByteSize()

    def test_no_large_float_weights_are_left(self, quantized: onnx.ModelProto) -> None:
        floats = [t for t in quantized.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]
        large = [t.name for t in floats if np.prod(t.dims) >= 1000 and not (self.float_table and t.name == "table_ID")]
        scales = {name for node in quantized.graph.node if node.op_type == "DequantizeLinear" for name in node.input[1:]}
        assert set(large) <= scales

    def test_it_ranks_alike(self, exported_graph: onnx.ModelProto, quantized: onnx.ModelProto, tmp_path) -> None:
        history_BL = np.random.default_rng(0).integers(1, 200, (100, 12))
        tops = []
        for name, model in (("float", exported_graph), ("quantized", quantized)):
            onnx.save(model, tmp_path / name)
            tops.append(open_graph(self.runtime, tmp_path / name).recommend(history_BL, 20)[0])
        overlap = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(*tops, strict=True)])
        assert overlap >= self.min_overlap

    def test_same_bytes_again(self, exported_graph: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
        again = self.quantize(exported_graph)
        assert again.SerializeToString(deterministic=True) == quantized.SerializeToString(deterministic=True)
