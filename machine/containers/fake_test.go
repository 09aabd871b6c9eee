//go:build linux

package containers

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	containerapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imageapi "github.com/containerd/containerd/api/services/images/v1"
	snapshotapi "github.com/containerd/containerd/api/services/snapshots/v1"
	streamapi "github.com/containerd/containerd/api/services/streaming/v1"
	taskapi "github.com/containerd/containerd/api/services/tasks/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A fake is a containerd that runs nothing. It keeps what it is given, by name
// space.
type fake struct {
	streamapi.UnimplementedStreamingServer
	transferapi.UnimplementedTransferServer

	mu         sync.Mutex
	containers map[string]*containerapi.Container
	tasks      map[string]*task
	images     map[string]*types.Descriptor
	blobs      map[string][]byte
	snapshots  map[string]string // key, parent
	streams    map[string]chan []byte
	arrived    []byte   // through the stream of an import
	said       []string // what was asked to change something
	pulls      map[string]*types.Descriptor
	stubborn   bool // SIGTERM does nothing
}

type task struct {
	request *taskapi.CreateTaskRequest
	status  tasktypes.Status
	pid     uint32
	ended   chan struct{}
	exit    uint32
}

// serve starts a fake and returns a client of it.
func serve(t *testing.T) (*fake, *Client) {
	t.Helper()
	f := &fake{
		containers: map[string]*containerapi.Container{}, tasks: map[string]*task{}, images: map[string]*types.Descriptor{},
		blobs: map[string][]byte{}, snapshots: map[string]string{}, streams: map[string]chan []byte{}, pulls: map[string]*types.Descriptor{},
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		if m, _ := metadata.FromIncomingContext(ctx); !slices.Equal(m.Get("containerd-namespace"), []string{System}) {
			return nil, status.Error(codes.FailedPrecondition, "namespace is required")
		}
		return h(ctx, req)
	}))
	containerapi.RegisterContainersServer(s, fakeContainers{fake: f})
	contentapi.RegisterContentServer(s, fakeContent{fake: f})
	imageapi.RegisterImagesServer(s, fakeImages{fake: f})
	snapshotapi.RegisterSnapshotsServer(s, fakeSnapshots{fake: f})
	streamapi.RegisterStreamingServer(s, f)
	taskapi.RegisterTasksServer(s, fakeTasks{fake: f})
	transferapi.RegisterTransferServer(s, f)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	c, err := Connect(socket, System)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return f, c
}

func (f *fake) say(s string) { f.said = append(f.said, s) }

// add stores a blob, and returns what describes it.
func (f *fake) add(t *testing.T, kind string, v any) *types.Descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data).String()
	f.blobs[d] = data
	return &types.Descriptor{MediaType: kind, Digest: d, Size: int64(len(data))}
}

func notFound(what string) error { return status.Errorf(codes.NotFound, "%s: not found", what) }

type fakeContainers struct {
	containerapi.UnimplementedContainersServer
	*fake
}

func (f fakeContainers) List(context.Context, *containerapi.ListContainersRequest) (*containerapi.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &containerapi.ListContainersResponse{}
	for _, c := range f.containers {
		r.Containers = append(r.Containers, c)
	}
	return r, nil
}

func (f fakeContainers) Create(_ context.Context, r *containerapi.CreateContainerRequest) (*containerapi.CreateContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := r.GetContainer()
	if f.containers[c.GetID()] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "container %q: already exists", c.GetID())
	}
	c.CreatedAt = timestamppb.New(time.Unix(1000, 0))
	f.containers[c.GetID()] = c
	f.say("container " + c.GetID())
	return &containerapi.CreateContainerResponse{Container: c}, nil
}

func (f fakeContainers) Delete(_ context.Context, r *containerapi.DeleteContainerRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.containers[r.GetID()] == nil {
		return nil, notFound("container " + r.GetID())
	}
	delete(f.containers, r.GetID())
	f.say("no container " + r.GetID())
	return &emptypb.Empty{}, nil
}

type fakeContent struct {
	contentapi.UnimplementedContentServer
	*fake
}

func (f fakeContent) Read(r *contentapi.ReadContentRequest, s contentapi.Content_ReadServer) error {
	data, ok := f.blobs[r.GetDigest()]
	if !ok {
		return notFound(r.GetDigest())
	}
	for half := range slices.Chunk(data, max(1, (len(data)+1)/2)) {
		if err := s.Send(&contentapi.ReadContentResponse{Data: half}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) Stream(s streamapi.Streaming_StreamServer) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	var init streamapi.StreamInit
	if first.GetTypeUrl() != "containerd.services.streaming.v1.StreamInit" || proto.Unmarshal(first.GetValue(), &init) != nil {
		return status.Errorf(codes.InvalidArgument, "%s", first.GetTypeUrl())
	}
	data := make(chan []byte)
	f.mu.Lock()
	f.streams[init.GetID()] = data
	f.mu.Unlock()
	defer close(data)
	if err := s.Send(&anypb.Any{}); err != nil {
		return err
	}
	const window = 5 // bytes
	open := 0
	for {
		if open == 0 {
			u, err := wrap(&transfertypes.WindowUpdate{Update: window})
			if err != nil {
				return err
			}
			if err := s.Send(u); err != nil {
				return err
			}
			open = window
		}
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var d transfertypes.Data
		if err := proto.Unmarshal(m.GetValue(), &d); err != nil {
			return err
		}
		if open -= len(d.GetData()); open < 0 {
			return status.Error(codes.InvalidArgument, "more than the window")
		}
		data <- d.GetData()
	}
}

func (f *fake) Transfer(ctx context.Context, r *transferapi.TransferRequest) (*emptypb.Empty, error) {
	var to transfertypes.ImageStore
	if r.GetDestination().GetTypeUrl() != "containerd.types.transfer.ImageStore" || proto.Unmarshal(r.GetDestination().GetValue(), &to) != nil || len(to.GetUnpacks()) != 1 {
		return nil, status.Errorf(codes.InvalidArgument, "destination %v", r.GetDestination())
	}
	switch r.GetSource().GetTypeUrl() {
	case "containerd.types.transfer.OCIRegistry":
		var from transfertypes.OCIRegistry
		if err := proto.Unmarshal(r.GetSource().GetValue(), &from); err != nil {
			return nil, err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.say("pull " + from.GetReference() + " as " + to.GetName() + " by " + from.GetResolver().GetHostDir())
		d := f.pulls[from.GetReference()]
		if d == nil {
			return nil, notFound(from.GetReference())
		}
		f.images[to.GetName()] = d
		return &emptypb.Empty{}, nil
	case "containerd.types.transfer.ImageImportStream":
		var from transfertypes.ImageImportStream
		if err := proto.Unmarshal(r.GetSource().GetValue(), &from); err != nil {
			return nil, err
		}
		f.mu.Lock()
		data := f.streams[from.GetStream()]
		f.mu.Unlock()
		if data == nil {
			return nil, notFound("stream")
		}
		for part := range data {
			f.arrived = append(f.arrived, part...)
		}
		return &emptypb.Empty{}, ctx.Err()
	}
	return nil, status.Errorf(codes.InvalidArgument, "source %v", r.GetSource())
}

type fakeImages struct {
	imageapi.UnimplementedImagesServer
	*fake
}

func (f fakeImages) List(context.Context, *imageapi.ListImagesRequest) (*imageapi.ListImagesResponse, error) {
	r := &imageapi.ListImagesResponse{}
	for name, d := range f.images {
		r.Images = append(r.Images, &imageapi.Image{Name: name, Target: d, CreatedAt: timestamppb.New(time.Unix(2000, 0))})
	}
	return r, nil
}

func (f fakeImages) Get(_ context.Context, r *imageapi.GetImageRequest) (*imageapi.GetImageResponse, error) {
	d := f.images[r.GetName()]
	if d == nil {
		return nil, notFound("image " + r.GetName())
	}
	return &imageapi.GetImageResponse{Image: &imageapi.Image{Name: r.GetName(), Target: d}}, nil
}

// addImage adds an image of two layers, and returns what names it.
func (f *fake) addImage(t *testing.T, config ocispec.ImageConfig) (target *types.Descriptor, chain string) {
	t.Helper()
	layers := []digest.Digest{digest.FromString("one"), digest.FromString("two")}
	c := f.add(t, ocispec.MediaTypeImageConfig, ocispec.Image{Config: config, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: layers}})
	m := ocispec.Manifest{
		Config: ocispec.Descriptor{MediaType: c.GetMediaType(), Digest: digest.Digest(c.GetDigest()), Size: c.GetSize()},
		Layers: []ocispec.Descriptor{{Size: 1000}, {Size: 10000}},
	}
	d := f.add(t, ocispec.MediaTypeImageManifest, m)
	index := ocispec.Index{Manifests: []ocispec.Descriptor{
		{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("other"), Platform: &ocispec.Platform{OS: "linux", Architecture: "riscv64"}},
		{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(d.GetDigest()), Size: d.GetSize(), Platform: &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}},
	}}
	return f.add(t, ocispec.MediaTypeImageIndex, index), digest.FromString(layers[0].String() + " " + layers[1].String()).String()
}
