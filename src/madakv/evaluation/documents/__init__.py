"""Long documents of text and pictures, made here, with questions whose evidence is spread over them."""

from madakv.evaluation.digits import Document
from madakv.evaluation.documents.document import Draft, draft, make_document
from madakv.evaluation.documents.shape import Shape
from madakv.evaluation.documents.words import KINDS, MILEBENCH, WORDS
from madakv.question import Question

__all__ = ["KINDS", "MILEBENCH", "WORDS", "Document", "Draft", "Question", "Shape", "draft", "make_document"]
