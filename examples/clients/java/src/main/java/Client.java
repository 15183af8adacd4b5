// Asks a Nexus server for one prediction by both of its APIs: mvn -q compile exec:java -Dexec.args=127.0.0.1:8001
import com.google.protobuf.ByteString;
import inference.GRPCInferenceServiceGrpc;
import inference.GrpcService.ModelInferRequest;
import inference.GrpcService.ModelInferResponse;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import nexus.v1.InferenceGrpc;
import nexus.v1.InferenceOuterClass.PredictRequest;
import nexus.v1.InferenceOuterClass.PredictResponse;

public final class Client {
  private static final List<Double> ROW = List.of(5.1, 3.5, 1.4, 0.2);
  private static final int TIMEOUT_SECONDS = 10;

  public static void main(String[] arguments) {
    String address = arguments.length > 0 ? arguments[0] : "127.0.0.1:8001";
    ManagedChannel channel = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
    int exitCode = 0;
    try {
      predict(channel);
      modelInfer(channel);
    } catch (StatusRuntimeException error) {
      Throwable cause = error.getStatus().getCause();
      String reason = error.getStatus().getDescription() + (cause == null ? "" : ": " + cause.getMessage());
      System.err.printf("client: %s answered %s: %s%n", address, error.getStatus().getCode(), reason);
      exitCode = 1;
    } finally {
      channel.shutdownNow();
    }
    System.exit(exitCode);
  }

  /** nexus.v1: a model and its features in, a prediction out. */
  private static void predict(ManagedChannel channel) {
    PredictRequest request = PredictRequest.newBuilder().setModelId("iris").addAllFeatures(ROW).build();
    PredictResponse answer =
        InferenceGrpc.newBlockingStub(channel)
            .withDeadlineAfter(TIMEOUT_SECONDS, TimeUnit.SECONDS)
            .predict(request);
    String probabilities = answer.getProbabilitiesList().stream().map(Client::format).collect(Collectors.joining(" "));
    System.out.printf("Predict: prediction %.0f, probabilities %s%n", answer.getPrediction(0), probabilities);
  }

  /** The Open Inference Protocol: tensors, as little-endian bytes. */
  private static void modelInfer(ManagedChannel channel) {
    ByteBuffer row = ByteBuffer.allocate(Float.BYTES * ROW.size()).order(ByteOrder.LITTLE_ENDIAN);
    ROW.forEach(value -> row.putFloat(value.floatValue()));
    ModelInferRequest request =
        ModelInferRequest.newBuilder()
            .setModelName("iris")
            .addInputs(
                ModelInferRequest.InferInputTensor.newBuilder()
                    .setName("X")
                    .setDatatype("FP32")
                    .addShape(1)
                    .addShape(ROW.size()))
            .addRawInputContents(ByteString.copyFrom(row.flip()))
            .build();
    ModelInferResponse answer =
        GRPCInferenceServiceGrpc.newBlockingStub(channel)
            .withDeadlineAfter(TIMEOUT_SECONDS, TimeUnit.SECONDS)
            .modelInfer(request);
    // One raw content per output, in the model's order: label (INT64), probabilities (FP32).
    long label = contents(answer, 0).getLong();
    ByteBuffer raw = contents(answer, 1);
    StringBuilder probabilities = new StringBuilder();
    while (raw.hasRemaining()) {
      probabilities.append(' ').append(format(raw.getFloat()));
    }
    System.out.printf("ModelInfer: label %d, probabilities%s%n", label, probabilities);
  }

  private static ByteBuffer contents(ModelInferResponse answer, int output) {
    return answer.getRawOutputContents(output).asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
  }

  private static String format(double value) {
    return String.format(Locale.ROOT, "%.4f", value);
  }
}
