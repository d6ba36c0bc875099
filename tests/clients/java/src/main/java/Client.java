import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import com.google.protobuf.Struct;
import com.google.protobuf.util.JsonFormat;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.sconce.v1.InferenceGrpc;
import io.sconce.v1.PredictRequest;
import io.sconce.v1.PredictResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** Asks early-signal for the probability of one row: Client ADDRESS SERVICE_CONFIG VERSION ROW EXPECTED. */
public final class Client {
  public static void main(String[] args) throws Exception {
    Map<String, Object> config = new Gson().fromJson(Files.readString(Path.of(args[1])), new TypeToken<Map<String, Object>>() {}.getType());
    double expected = Double.parseDouble(args[4]);
    ManagedChannel channel = Grpc.newChannelBuilder("dns:///" + args[0], InsecureChannelCredentials.create())
        .defaultServiceConfig(config)
        .build();
    try {
      Struct.Builder row = Struct.newBuilder();
      JsonFormat.parser().merge(args[3], row);
      PredictRequest request = PredictRequest.newBuilder().setModel("early-signal").setVersion(args[2]).addRows(row).build();
      PredictResponse response = InferenceGrpc.newBlockingStub(channel).withDeadlineAfter(30, TimeUnit.SECONDS).predict(request);

      double probability = response.getRows(0).getFieldsOrThrow("probability").getNumberValue();
      System.out.println(response.getServed().getModel() + " " + response.getServed().getVersion() + ": probability " + probability);
      if (Math.abs(probability - expected) > 1e-12 * Math.abs(expected)) {
        throw new AssertionError("expected " + expected);
      }
    } finally {
      channel.shutdownNow();
    }
  }
}
