import io.grpc.BindableService;
import io.grpc.Server;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.services.HealthStatusManager;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.temporal.internal.testservice.TestServicesStarter;
import java.net.InetSocketAddress;

/**
 * Temporal's time-skipping test server, on loopback only: the stock entry point listens on every interface.
 * Arguments as of the stock one: PORT [flags], the flags being ignored but --enable-time-skipping.
 */
public final class LoopbackTestServer {
  public static void main(String[] args) throws Exception {
    boolean skipping = args.length > 1 && args[1].equals("--enable-time-skipping");
    TestServicesStarter services = new TestServicesStarter(!skipping, 0);
    HealthStatusManager health = new HealthStatusManager();
    NettyServerBuilder builder = NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", Integer.parseInt(args[0])));
    builder.maxInboundMessageSize(128 * 1024 * 1024);
    for (BindableService service : services.getServices()) {
      builder.addService(service);
      health.setStatus(service.bindService().getServiceDescriptor().getName(), ServingStatus.SERVING);
    }
    Server server = builder.addService(health.getHealthService()).build().start();
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      server.shutdownNow();
      services.close();
    }));
    server.awaitTermination();
  }
}
