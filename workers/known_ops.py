"""What the pinned onnxruntime can load: opsets, IR versions, and its own operators that have a CPU kernel.

A test holds these to the onnxruntime that is installed, so an upgrade of the one changes the other. They are written
down, not asked for, because a model is looked through before onnxruntime is imported.
"""

# Released opsets by domain ("" is ai.onnx); onnxruntime refuses newer ones.
OPSET_MAX = {"": 26, "ai.onnx.ml": 5, "com.microsoft": 1}
IR_VERSION_MAX = 13

# Operators of the domain com.microsoft (onnxruntime's docs/ContribOperators.md).
_CONTRIB = """
    Attention AttnLSTM BeamSearch BiasGelu BifurcationDetector BranchwiseRMSNorm CDist CausalConvWithState
    ConvTransposeWithDynamicPads CropAndResize DecoderMaskedMultiHeadAttention DequantizeLinear DynamicQuantizeLSTM
    DynamicQuantizeMatMul DynamicTimeWarping EmbedLayerNormalization EngramGate ExpandDims FastGelu FusedConv
    FusedGemm FusedMatMul GatedAdd GatedRMSNorm GatherBlockQuantized GatherND Gelu GreedySearch GridSample
    GroupQueryAttention HyperConnectionPostMix HyperConnectionPreMix Inverse LinearAttention LinearAttentionGate
    MRotaryEmbedding MatMulBnb4 MatMulFpQ4 MatMulInteger16 MatMulIntegerToFloat MatMulNBits MaxpoolWithMask MoE
    MultiHeadAttention MurmurHash3 NGramHashMapping NGramRepeatBlock NhwcMaxPool Pad QAttention
    QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool
    QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax QLinearWhere QMoE QuantizeLinear QuickGelu Range
    RotaryEmbedding SampleOp Sampling ScaledSiLU SkipLayerNormalization SkipSimplifiedLayerNormalization
    SparseAttention SparseToDenseMatMul Tokenizer TransposeMatMul Trilu UnfoldTensor Unique VarlenNGramHashMapping
    WhisperBeamSearch WordConvEmbedding
"""
CONTRIB_OPS = frozenset(_CONTRIB.split())
