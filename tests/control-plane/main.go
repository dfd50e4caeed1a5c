// A control plane for the tests: go-control-plane's snapshot cache, served over gRPC and REST, driven by YAML files.
//
// It prints one JSON object a line: first its ports, then what happens. Each line on its standard input is the path of a
// snapshot to serve from then on; it ends with its input.
//
//	version: v1
//	resources:
//	- {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, ...}
//
// Aggregated and separate streams, state of the world and delta are served at once: which of them is used is for the
// bootstrap of the proxy to say. -ads makes the cache keep the order of ADS, as ordered control planes do: a request for
// endpoints or routes is not answered before it names all that there are.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	extension "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	runtime "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	// The messages that snapshots may hold.
	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// anyNode serves one snapshot to every proxy.
type anyNode struct{}

const node = "all"

func (anyNode) ID(*core.Node) string { return node }

type events struct {
	sync.Mutex
	out *json.Encoder
}

func (e *events) print(event map[string]any) {
	e.Lock()
	defer e.Unlock()
	if err := e.out.Encode(event); err != nil {
		log.Fatal(err)
	}
}

// callbacks reports streams, acknowledgements and refusals.
func (e *events) callbacks() server.Callbacks {
	return server.CallbackFuncs{
		StreamOpenFunc: func(_ context.Context, id int64, typeURL string) error {
			e.print(map[string]any{"event": "stream", "id": id, "type": typeURL})
			return nil
		},
		DeltaStreamOpenFunc: func(_ context.Context, id int64, typeURL string) error {
			e.print(map[string]any{"event": "delta stream", "id": id, "type": typeURL})
			return nil
		},
		StreamRequestFunc: func(id int64, r *discovery.DiscoveryRequest) error {
			e.answer(id, r.GetTypeUrl(), r.GetVersionInfo(), r.GetResponseNonce(), r.GetErrorDetail().GetMessage())
			return nil
		},
		StreamDeltaRequestFunc: func(id int64, r *discovery.DeltaDiscoveryRequest) error {
			e.answer(id, r.GetTypeUrl(), "", r.GetResponseNonce(), r.GetErrorDetail().GetMessage())
			return nil
		},
		FetchRequestFunc: func(_ context.Context, r *discovery.DiscoveryRequest) error {
			e.print(map[string]any{"event": "fetch", "type": r.GetTypeUrl(), "version": r.GetVersionInfo()})
			return nil
		},
	}
}

func (e *events) answer(id int64, typeURL, version, nonce, message string) {
	event := "request"
	if message != "" {
		event = "nack"
	} else if nonce != "" {
		event = "ack"
	}
	e.print(map[string]any{"event": event, "id": id, "type": typeURL, "version": version, "error": message})
}

func load(path string) (*cache.Snapshot, string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, "", err
	}
	var file struct {
		Version   string            `json:"version"`
		Resources []json.RawMessage `json:"resources"`
	}
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		return nil, "", err
	}
	resources := map[string][]types.Resource{}
	for _, raw := range file.Resources {
		packed := &anypb.Any{}
		if err := protojson.Unmarshal(raw, packed); err != nil {
			return nil, "", fmt.Errorf("%s: %w", raw, err)
		}
		message, err := packed.UnmarshalNew()
		if err != nil {
			return nil, "", err
		}
		resources[packed.GetTypeUrl()] = append(resources[packed.GetTypeUrl()], message)
	}
	snapshot, err := cache.NewSnapshot(file.Version, resources)
	if err != nil {
		return nil, "", err
	}
	return snapshot, file.Version, nil
}

func run() error {
	ads := flag.Bool("ads", false, "keep the order of ADS")
	flag.Parse()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	events := &events{out: json.NewEncoder(os.Stdout)}
	snapshots := cache.NewSnapshotCache(*ads, anyNode{}, nil)
	xds := server.NewServer(ctx, snapshots, events.callbacks())

	grpcListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	restListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// Envoy opens a stream for each cluster, route table and secret when they are not aggregated.
	service := grpc.NewServer(grpc.MaxConcurrentStreams(1000000))
	discovery.RegisterAggregatedDiscoveryServiceServer(service, xds)
	cluster.RegisterClusterDiscoveryServiceServer(service, xds)
	endpoint.RegisterEndpointDiscoveryServiceServer(service, xds)
	listener.RegisterListenerDiscoveryServiceServer(service, xds)
	route.RegisterRouteDiscoveryServiceServer(service, xds)
	route.RegisterScopedRoutesDiscoveryServiceServer(service, xds)
	route.RegisterVirtualHostDiscoveryServiceServer(service, xds)
	secret.RegisterSecretDiscoveryServiceServer(service, xds)
	runtime.RegisterRuntimeDiscoveryServiceServer(service, xds)
	extension.RegisterExtensionConfigDiscoveryServiceServer(service, xds)
	go func() { log.Fatal(service.Serve(grpcListener)) }()
	gateway := &server.HTTPGateway{Server: xds}
	go func() {
		log.Fatal(http.Serve(restListener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, code, err := gateway.ServeHTTP(r)
			if err != nil {
				http.Error(w, err.Error(), code)
				return
			}
			w.Header().Set("content-type", "application/json")
			w.WriteHeader(code)
			_, _ = w.Write(body)
		})))
	}()
	events.print(map[string]any{
		"event": "listening",
		"grpc":  grpcListener.Addr().(*net.TCPAddr).Port,
		"rest":  restListener.Addr().(*net.TCPAddr).Port,
	})

	input := bufio.NewReader(os.Stdin)
	for {
		line, err := input.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := line[:len(line)-1]
		snapshot, version, err := load(path)
		if err == nil {
			err = snapshots.SetSnapshot(ctx, node, snapshot)
		}
		if err != nil {
			events.print(map[string]any{"event": "refused", "error": fmt.Sprintf("%s: %v", path, err)})
			continue
		}
		events.print(map[string]any{"event": "serving", "version": version})
	}
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
