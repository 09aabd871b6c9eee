//go:build linux

// Package containers is a client of containerd, as far as a node needs one: it
// lists containers and images, brings images in, from archives in the OCI image
// layout and from registries, and runs the containers that the node itself wants.
//
// containerd is asked with gRPC over a unix socket (services containerd.services.*
// in its api module). Everything it has is in a name space, which every call names
// in its metadata: Kubernetes' containers are in "k8s.io", the node's in "system".
// Images and unpacked layers are shared by all name spaces, but found only in
// those that have a reference to them.
package containers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	containerapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imageapi "github.com/containerd/containerd/api/services/images/v1"
	leaseapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotapi "github.com/containerd/containerd/api/services/snapshots/v1"
	streamapi "github.com/containerd/containerd/api/services/streaming/v1"
	taskapi "github.com/containerd/containerd/api/services/tasks/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Socket is where containerd listens.
const Socket = "/run/containerd/containerd.sock"

// Name spaces of containerd.
const (
	System     = "system" // of the node itself
	Kubernetes = "k8s.io" // of the kubelet
)

// Errors that callers branch on.
var (
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("exists already")
	ErrUnreachable = errors.New("containerd does not answer")
)

const (
	snapshotter = "overlayfs"
	runtimeName = "io.containerd.runc.v2"

	// maxMessage is the size of an answer, in bytes, as containerd's own client
	// has it.
	maxMessage = 16 << 20
)

// A Client asks a containerd, for one name space.
type Client struct {
	namespace  string
	conn       *grpc.ClientConn
	containers containerapi.ContainersClient
	content    contentapi.ContentClient
	diffs      diffapi.DiffClient
	images     imageapi.ImagesClient
	leases     leaseapi.LeasesClient
	snapshots  snapshotapi.SnapshotsClient
	streams    streamapi.StreamingClient
	tasks      taskapi.TasksClient
	transfer   transferapi.TransferClient
}

// Connect returns a client of the containerd that listens on the socket. It
// connects with the first call, which waits for a containerd that is about to
// start until its context ends.
func Connect(socket, namespace string) (*Client, error) {
	c := &Client{namespace: namespace}
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage), grpc.WaitForReady(true)),
		grpc.WithUnaryInterceptor(c.unary), grpc.WithStreamInterceptor(c.stream),
		grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, err
	}
	c.conn = conn
	c.containers = containerapi.NewContainersClient(conn)
	c.content = contentapi.NewContentClient(conn)
	c.diffs = diffapi.NewDiffClient(conn)
	c.leases = leaseapi.NewLeasesClient(conn)
	c.images = imageapi.NewImagesClient(conn)
	c.snapshots = snapshotapi.NewSnapshotsClient(conn)
	c.streams = streamapi.NewStreamingClient(conn)
	c.tasks = taskapi.NewTasksClient(conn)
	c.transfer = transferapi.NewTransferClient(conn)
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// named says to which name space a call belongs.
func (c *Client) named(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", c.namespace)
}

func (c *Client) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return meaning(invoke(c.named(ctx), method, req, reply, conn, opts...))
}

func (c *Client) stream(ctx context.Context, d *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(c.named(ctx), d, conn, method, opts...)
	return s, meaning(err)
}

// meaning makes an error of gRPC one that callers branch on, with containerd's
// text alone.
func meaning(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	switch s.Code() {
	case codes.NotFound:
		return fmt.Errorf("%w: %s", ErrNotFound, s.Message())
	case codes.AlreadyExists:
		return fmt.Errorf("%w: %s", ErrExists, s.Message())
	case codes.Unavailable:
		return fmt.Errorf("%w: %s", ErrUnreachable, s.Message())
	case codes.DeadlineExceeded:
		return fmt.Errorf("%w: %s", context.DeadlineExceeded, s.Message())
	case codes.Canceled:
		return fmt.Errorf("%w: %s", context.Canceled, s.Message())
	}
	return fmt.Errorf("containerd: %s", s.Message())
}
