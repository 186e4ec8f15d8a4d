"""The names of the ways to an int8 file, which the records, the lines and the model card share."""

PLAIN, PTQ, QAT, QAD = "plain", "ptq", "qat", "qad"
WORDS = {
    PLAIN: "plain PTQ",
    PTQ: "PTQ with layers in float where it needs them",
    QAT: "QAT by the labels alone",
    QAD: "QAD",
}
