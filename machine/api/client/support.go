package client

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/kilnhq/kiln/api/v1alpha1"
)

// maxFact is the size that a file of a support bundle is cut to, in bytes.
const maxFact = 16 << 20

// Facts are what a node says about itself.
type Facts struct {
	Files  []File
	Errors []string // what could not be had
}

// A File is one of a support bundle.
type File struct {
	Name string
	Data []byte
}

// Collect asks a node for everything that a reader may see and that helps to find
// a fault. Every question may take as long as timeout.
func Collect(ctx context.Context, c v1alpha1.NodeClient, timeout time.Duration) *Facts {
	f := &Facts{}
	fact(ctx, f, timeout, "version", c.Version, &v1alpha1.VersionRequest{})
	fact(ctx, f, timeout, "health", c.Health, &v1alpha1.HealthRequest{})
	services := fact(ctx, f, timeout, "services", c.Services, &v1alpha1.ServicesRequest{})
	fact(ctx, f, timeout, "processes", c.Processes, &v1alpha1.ProcessesRequest{Kernel: true})
	for _, ns := range []string{"system", "k8s.io"} {
		fact(ctx, f, timeout, "containers-"+ns, c.Containers, &v1alpha1.ContainersRequest{Namespace: ns})
		fact(ctx, f, timeout, "images-"+ns, c.Images, &v1alpha1.ImagesRequest{Namespace: ns})
	}
	fact(ctx, f, timeout, "stats", c.Stats, &v1alpha1.StatsRequest{})
	fact(ctx, f, timeout, "memory", c.Memory, &v1alpha1.MemoryRequest{})
	fact(ctx, f, timeout, "mounts", c.Mounts, &v1alpha1.MountsRequest{})
	fact(ctx, f, timeout, "disks", c.Disks, &v1alpha1.DisksRequest{})
	fact(ctx, f, timeout, "modules", c.Modules, &v1alpha1.ModulesRequest{})
	fact(ctx, f, timeout, "extensions", c.Extensions, &v1alpha1.ExtensionsRequest{})
	fact(ctx, f, timeout, "hardening", c.Hardening, &v1alpha1.HardeningRequest{})
	stream(ctx, f, timeout, "dmesg.txt", c.Dmesg, &v1alpha1.DmesgRequest{Tail: -1}, func(l *v1alpha1.DmesgLine) string {
		return fmt.Sprintf("<%d>[%5d.%06d] %s", l.GetLevel(), l.GetMicroseconds()/1e6, l.GetMicroseconds()%1e6, l.GetMessage())
	})
	stream(ctx, f, timeout, "events.txt", c.Events, &v1alpha1.EventsRequest{Tail: -1}, func(e *v1alpha1.Event) string {
		return fmt.Sprintf("%s %s %s %s %v", e.GetTime().AsTime().Format(time.RFC3339Nano), e.GetKind(), e.GetSubject(), e.GetMessage(), e.GetFields())
	})
	for _, s := range services.GetServices() {
		stream(ctx, f, timeout, "logs/"+safe(s.GetName())+".txt", c.Logs, &v1alpha1.LogsRequest{Service: s.GetName(), Tail: -1}, func(l *v1alpha1.LogLine) string {
			return l.GetTime().AsTime().Format(time.RFC3339Nano) + " " + string(l.GetText())
		})
	}
	return f
}

// safe makes a name one of a file.
func safe(name string) string {
	name = strings.Map(func(r rune) rune {
		if r == '/' || r == '\\' || r < ' ' {
			return '_'
		}
		return r
	}, name)
	if strings.Trim(name, ".") == "" {
		return "_"
	}
	return name
}

func (f *Facts) failed(what string, err error) {
	f.Errors = append(f.Errors, what+": "+err.Error())
}

// fact adds a verb's answer, as JSON.
func fact[Q any, M proto.Message](ctx context.Context, f *Facts, timeout time.Duration, name string, ask func(context.Context, Q, ...grpc.CallOption) (M, error), request Q) M {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	m, err := ask(ctx, request)
	if err != nil {
		f.failed(name, err)
		return m
	}
	data, err := protojson.MarshalOptions{UseProtoNames: true, Multiline: true}.Marshal(m)
	if err != nil {
		f.failed(name, err)
		return m
	}
	f.Files = append(f.Files, File{name + ".json", append(data, '\n')})
	return m
}

// stream adds the answers of a verb, as lines. What came before an error stays.
func stream[Q, M any](ctx context.Context, f *Facts, timeout time.Duration, name string, ask func(context.Context, Q, ...grpc.CallOption) (grpc.ServerStreamingClient[M], error), request Q, line func(*M) string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s, err := ask(ctx, request)
	if err != nil {
		f.failed(name, err)
		return
	}
	var b bytes.Buffer
	defer func() { f.Files = append(f.Files, File{name, b.Bytes()}) }()
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			f.failed(name, err)
			return
		}
		if b.Len() > maxFact {
			f.failed(name, fmt.Errorf("more than %d bytes; the rest is left out", maxFact))
			return
		}
		b.WriteString(line(m))
		b.WriteByte('\n')
	}
}

// A Bundle writes the facts of nodes as a tar.gz, with a directory for each.
type Bundle struct {
	zip *gzip.Writer
	tar *tar.Writer
}

// NewBundle returns a bundle that is written to w.
func NewBundle(w io.Writer) *Bundle {
	z := gzip.NewWriter(w)
	return &Bundle{z, tar.NewWriter(z)}
}

// Add adds the facts of a node.
func (b *Bundle) Add(node string, f *Facts) error {
	files := f.Files
	if len(f.Errors) > 0 {
		files = append(files[:len(files):len(files)], File{"errors.txt", []byte(strings.Join(f.Errors, "\n") + "\n")})
	}
	for _, x := range files {
		h := &tar.Header{Name: path.Join("support", safe(node), x.Name), Mode: 0o600, Size: int64(len(x.Data)), Format: tar.FormatPAX}
		if err := b.tar.WriteHeader(h); err != nil {
			return err
		}
		if _, err := b.tar.Write(x.Data); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the bundle.
func (b *Bundle) Close() error { return errors.Join(b.tar.Close(), b.zip.Close()) }
