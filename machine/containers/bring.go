//go:build linux

package containers

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	streamapi "github.com/containerd/containerd/api/services/streaming/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/api/types"
	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kilnhq/kiln/machine/registry"
)

// wrap packs a message as containerd does: its type without a URL's host.
func wrap(m proto.Message) (*anypb.Any, error) {
	data, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: data}, nil
}

// store is where images go to: into the image store, and unpacked.
func store(name string) *transfertypes.ImageStore {
	here := &types.Platform{OS: "linux", Architecture: runtime.GOARCH}
	s := &transfertypes.ImageStore{
		Name: name, Platforms: []*types.Platform{here},
		Unpacks: []*transfertypes.UnpackConfiguration{{Platform: here, Snapshotter: snapshotter}},
	}
	if name == "" { // as the archive calls them; the prefix is for those with a tag only
		s.ExtraReferences = []*transfertypes.ImageReference{{Name: "import", IsPrefix: true, AllowOverwrite: true}}
	}
	return s
}

func (c *Client) move(ctx context.Context, from, to proto.Message) error {
	source, err := wrap(from)
	if err != nil {
		return err
	}
	destination, err := wrap(to)
	if err != nil {
		return err
	}
	_, err = c.transfer.Transfer(ctx, &transferapi.TransferRequest{Source: source, Destination: destination})
	return err
}

// Pull brings in the image with a name, which says where it is.
func (c *Client) Pull(ctx context.Context, name string) error {
	if err := c.pull(ctx, name, registry.HostsDir, registry.ClientFile); err != nil {
		return fmt.Errorf("pull %s: %w", name, err)
	}
	return nil
}

// Import brings in the images of an archive: a tar of an OCI image layout, or what
// 'docker save' writes. containerd checks the digest of all it stores. The images
// have the names that annotations of the index give them.
func (c *Client) Import(ctx context.Context, archive io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	id := "kiln-import-" + uuid.NewString()
	stream, err := c.openStream(ctx, id)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	sent := make(chan error, 1)
	go func() {
		err := send(stream, archive)
		if err != nil { // containerd is not to take what has come for all there is
			cancel()
		}
		sent <- err
	}()
	err = c.move(ctx, &transfertypes.ImageImportStream{Stream: id}, store(""))
	cancel()
	if e := <-sent; e != nil && !errors.Is(e, context.Canceled) {
		err = e // it is why the import was given up
	}
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	return nil
}

// ImportLayout brings in the images of the OCI image layout in a directory.
func (c *Client) ImportLayout(ctx context.Context, dir string) error {
	r, w := io.Pipe()
	defer r.Close()
	go func() {
		t := tar.NewWriter(w)
		err := t.AddFS(os.DirFS(dir))
		if err == nil {
			err = t.Close()
		}
		w.CloseWithError(err) // nil is io.EOF
	}()
	if err := c.Import(ctx, r); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// openStream opens a stream that a transfer can name.
func (c *Client) openStream(ctx context.Context, id string) (grpc.BidiStreamingClient[anypb.Any, anypb.Any], error) {
	stream, err := c.streams.Stream(ctx)
	if err != nil {
		return nil, err
	}
	first, err := wrap(&streamapi.StreamInit{ID: id})
	if err != nil {
		return nil, err
	}
	if err := stream.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return nil, meaning(err)
	}
	if _, err := stream.Recv(); err != nil { // it says that the stream is known
		return nil, meaning(err)
	}
	return stream, nil
}

// chunk is how many bytes are sent at a time.
const chunk = 32 << 10

// send sends what r has, not more than the other side has said it takes.
func send(stream grpc.BidiStreamingClient[anypb.Any, anypb.Any], r io.Reader) error {
	var window int32
	buf := make([]byte, chunk)
	for {
		for window <= 0 {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil // the other side has what it wants
			}
			if err != nil {
				return meaning(err)
			}
			var u transfertypes.WindowUpdate
			if err := proto.Unmarshal(m.GetValue(), &u); err != nil {
				return err
			}
			window += u.GetUpdate()
		}
		n, err := r.Read(buf[:min(chunk, window)])
		if n > 0 {
			window -= int32(n)
			m, err := wrap(&transfertypes.Data{Data: buf[:n]})
			if err != nil {
				return err
			}
			if err := stream.Send(m); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return meaning(err)
			}
		}
		if errors.Is(err, io.EOF) {
			return meaning(stream.CloseSend())
		}
		if err != nil {
			return err
		}
	}
}
