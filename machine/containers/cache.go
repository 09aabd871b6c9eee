//go:build linux

package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imageapi "github.com/containerd/containerd/api/services/images/v1"
	leaseapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/kilnhq/kiln/machine/imagecache"
)

const (
	// cacheLabel is of images that came from the cache: a later cache may have
	// another one of that name.
	cacheLabel = "kiln.image-cache"

	// pinnedLabel keeps the kubelet from removing an image when disks fill up: it
	// could not be brought back without a network.
	pinnedLabel = "io.cri-containerd.pinned"

	// nameAnnotation is the name of an image in the index of a layout.
	nameAnnotation = "io.containerd.image.name"

	// gcContent are labels that keep blobs that one refers to.
	gcContent = "containerd.io/gc.ref.content."

	cacheLease = "kiln-image-cache"
)

// cacheWait is how long the medium with the cache may take to be there.
const cacheWait = time.Minute

// ImportCache brings what is in the OCI image layout in a directory into
// containerd, for Kubernetes and for the node itself. Images that are there are
// passed over; so are those of which the node has got another one by itself.
// containerd compares every blob with its digest. Layers are unpacked when the
// first container needs them. The error is for a containerd that cannot be asked;
// what is wrong with the cache is in the report.
func ImportCache(ctx context.Context, socket, dir string) (*imagecache.Report, error) {
	report := &imagecache.Report{Images: []imagecache.Image{}}
	root, index, err := openCache(ctx, dir)
	if err != nil {
		report.Error = err.Error()
		return report, ctx.Err()
	}
	defer root.Close()
	var clients []*Client
	for _, namespace := range []string{Kubernetes, System} {
		c, err := Connect(socket, namespace)
		if err != nil {
			return report, err
		}
		defer c.Close()
		clients = append(clients, c)
	}
	for _, d := range index.Manifests {
		image := imagecache.Image{Name: d.Annotations[nameAnnotation], Digest: d.Digest.String(), State: imagecache.Present}
		for _, c := range clients {
			state, err := c.cached(ctx, root, d)
			if errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
				return report, errors.Join(err, ctx.Err())
			}
			if err != nil {
				image.State, image.Error = imagecache.Failed, err.Error()
				break
			}
			if state != imagecache.Present {
				image.State = state
			}
		}
		report.Images = append(report.Images, image)
	}
	return report, nil
}

// openCache waits for the layout, and opens it.
func openCache(ctx context.Context, dir string) (*os.Root, *ocispec.Index, error) {
	for end := time.Now().Add(cacheWait); ; {
		root, err := os.OpenRoot(dir)
		if err == nil {
			index := new(ocispec.Index)
			if err = decode(root, "index.json", maxDocument, index); err == nil {
				return root, index, nil
			}
			root.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) || time.Now().After(end) {
			return nil, nil, fmt.Errorf("index of the images: %w", err)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// decode reads a file of JSON.
func decode(root *os.Root, name string, limit int64, v any) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return err
	}
	if int64(len(data)) > limit {
		return fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// cached brings in one image.
func (c *Client) cached(ctx context.Context, root *os.Root, d ocispec.Descriptor) (state string, err error) {
	name := d.Annotations[nameAnnotation]
	if name == "" {
		return "", fmt.Errorf("%s has no name", d.Digest)
	}
	old, err := c.images.Get(ctx, &imageapi.GetImageRequest{Name: name})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return "", err
	}
	if old := old.GetImage(); old != nil {
		if old.GetTarget().GetDigest() == d.Digest.String() {
			return imagecache.Present, nil
		}
		if old.GetLabels()[cacheLabel] == "" {
			return imagecache.Kept, nil
		}
	}
	ctx, done, err := c.lease(ctx, cacheLease)
	if err != nil {
		return "", err
	}
	defer done()
	if _, err := c.putTree(ctx, root, d, 0); err != nil {
		return "", err
	}
	names := []string{name}
	if repository, _, pinned := strings.Cut(name, "@"); c.namespace == Kubernetes && !pinned {
		if i := strings.LastIndexByte(repository, ':'); i > strings.LastIndexByte(repository, '/') {
			repository = repository[:i]
		}
		names = append(names, repository+"@"+d.Digest.String()) // as after a pull
	}
	for _, name := range names {
		if err := c.setImage(ctx, name, d); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	return imagecache.Imported, nil
}

// setImage makes an image by a name.
func (c *Client) setImage(ctx context.Context, name string, d ocispec.Descriptor) error {
	image := &imageapi.Image{
		Name: name, Target: &types.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size},
		Labels: map[string]string{cacheLabel: "true"},
	}
	if c.namespace == Kubernetes {
		image.Labels[pinnedLabel] = "pinned"
	}
	_, err := c.images.Create(ctx, &imageapi.CreateImageRequest{Image: image})
	if !errors.Is(err, ErrExists) {
		return err
	}
	_, err = c.images.Update(ctx, &imageapi.UpdateImageRequest{Image: image})
	return err
}

// lease keeps what is brought in, which nothing refers to yet, until done is
// called. One of that name that was left behind is taken over.
func (c *Client) lease(ctx context.Context, id string) (leased context.Context, done func(), err error) {
	_, err = c.leases.Create(ctx, &leaseapi.CreateRequest{ID: id})
	if err != nil && !errors.Is(err, ErrExists) {
		return nil, nil, err
	}
	done = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleaning)
		defer cancel()
		_, _ = c.leases.Delete(ctx, &leaseapi.DeleteRequest{ID: id}) // the next one takes it over
	}
	return metadata.AppendToOutgoingContext(ctx, "containerd-lease", id), done, nil
}

// putTree stores a manifest with all it refers to, or an index with those of its
// manifests that the layout has. It reports whether the blob is in the layout.
func (c *Client) putTree(ctx context.Context, root *os.Root, d ocispec.Descriptor, depth int) (found bool, err error) {
	if err := d.Digest.Validate(); err != nil || d.Digest.Algorithm() != digest.SHA256 {
		return false, fmt.Errorf("digest %.100q, want sha256:…", d.Digest)
	}
	if d.Size < 0 || d.Size > maxDocument {
		return false, fmt.Errorf("%s has %d bytes, want at most %d", d.Digest, d.Size, maxDocument)
	}
	labels := map[string]string{}
	put := func(label string, d ocispec.Descriptor) error {
		labels[gcContent+label] = d.Digest.String()
		return c.putBlob(ctx, root, d, nil)
	}
	switch d.MediaType {
	case ocispec.MediaTypeImageManifest, dockerManifest:
		var m ocispec.Manifest
		if err := decode(root, blobFile(d), maxDocument, &m); err != nil {
			return false, err
		}
		for i, l := range m.Layers {
			if err := put(fmt.Sprintf("l.%d", i), l); err != nil {
				return false, err
			}
		}
		if err := put("config", m.Config); err != nil {
			return false, err
		}
	case ocispec.MediaTypeImageIndex, dockerIndex:
		if depth == maxIndexes {
			return false, fmt.Errorf("indexes nested more than %d deep", maxIndexes)
		}
		var index ocispec.Index
		if err := decode(root, blobFile(d), maxDocument, &index); err != nil {
			return false, err
		}
		for i, m := range index.Manifests {
			if _, err := root.Stat(blobFile(m)); err != nil {
				continue // of other architectures
			}
			ok, err := c.putTree(ctx, root, m, depth+1)
			if err != nil {
				return false, err
			}
			if ok {
				labels[fmt.Sprintf("%sm.%d", gcContent, i)] = m.Digest.String()
			}
		}
	default:
		return false, nil // not an image
	}
	return true, c.putBlob(ctx, root, d, labels)
}

// maxIndexes is how deep indexes may be nested.
const maxIndexes = 4

func blobFile(d ocispec.Descriptor) string {
	return "blobs/" + strings.Replace(d.Digest.String(), ":", "/", 1)
}

// putBlob stores a blob, which containerd compares with its digest. It is sent
// once, however many name spaces have it.
func (c *Client) putBlob(ctx context.Context, root *os.Root, d ocispec.Descriptor, labels map[string]string) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %.100q: %w", d.Digest, err)
	}
	f, err := root.Open(blobFile(d))
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() != d.Size {
		return fmt.Errorf("%s has %d bytes, want %d", blobFile(d), fi.Size(), d.Size)
	}
	ref := "kiln-image-cache-" + d.Digest.String()
	err = c.writeBlob(ctx, ref, f, d, labels)
	if errors.Is(err, ErrExists) {
		return c.labelBlob(ctx, d.Digest, labels)
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleaning)
		defer cancel()
		_, _ = c.content.Abort(clean, &contentapi.AbortRequest{Ref: ref}) // which may not be there
		return fmt.Errorf("%s: %w", blobFile(d), err)
	}
	return nil
}

// labelBlob adds labels to a blob.
func (c *Client) labelBlob(ctx context.Context, d digest.Digest, labels map[string]string) error {
	if len(labels) == 0 {
		return nil
	}
	mask := new(fieldmaskpb.FieldMask)
	for name := range labels {
		mask.Paths = append(mask.Paths, "labels."+name)
	}
	_, err := c.content.Update(ctx, &contentapi.UpdateRequest{Info: &contentapi.Info{Digest: d.String(), Labels: labels}, UpdateMask: mask})
	return err
}

// blobChunk is how many bytes of a blob are sent at a time.
const blobChunk = 512 << 10

// writeBlob writes a blob. The error wraps ErrExists if it is there.
func (c *Client) writeBlob(ctx context.Context, ref string, r io.ReaderAt, d ocispec.Descriptor, labels map[string]string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.content.Write(ctx)
	if err != nil {
		return err
	}
	ask := func(m *contentapi.WriteContentRequest) (*contentapi.WriteContentResponse, error) {
		if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) { // io.EOF: Recv has the error
			return nil, meaning(err)
		}
		answer, err := stream.Recv()
		return answer, meaning(err)
	}
	status, err := ask(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_STAT, Ref: ref, Total: d.Size, Expected: d.Digest.String()})
	if err != nil {
		return err
	}
	at := status.GetOffset() // what another name space has, or an earlier try has sent, is not sent again
	buf := make([]byte, min(blobChunk, max(d.Size, 1)))
	for at < d.Size {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), d.Size-at)], at)
		if n == 0 {
			return err
		}
		if _, err := ask(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Offset: at, Data: buf[:n]}); err != nil {
			return err
		}
		at += int64(n)
	}
	_, err = ask(&contentapi.WriteContentRequest{
		Action: contentapi.WriteAction_COMMIT, Total: d.Size, Offset: at, Expected: d.Digest.String(), Labels: labels,
	})
	return err
}
