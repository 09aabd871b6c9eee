//go:build linux

package containers

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	containerapi "github.com/containerd/containerd/api/services/containers/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnhq/kiln/machine/containers/static"
	"github.com/kilnhq/kiln/machine/control"
)

func TestList(t *testing.T) {
	f, c := serve(t)
	created := time.Unix(1000, 0).UTC()
	for id, labels := range map[string]map[string]string{
		"plain": nil,
		"1a2b":  {"io.kubernetes.pod.namespace": "kube-system", "io.kubernetes.pod.name": "etcd-a", "io.kubernetes.container.name": "etcd"},
		"3c4d":  {"io.kubernetes.pod.namespace": "kube-system", "io.kubernetes.pod.name": "etcd-a"},
	} {
		f.containers[id] = &containerapi.Container{ID: id, Labels: labels, Image: "i", CreatedAt: timestamppb.New(created)}
	}
	f.tasks["plain"] = &task{pid: 10, status: tasktypes.Status_RUNNING}
	f.tasks["1a2b"] = &task{pid: 11, status: tasktypes.Status_STOPPED}
	list, err := c.List(t.Context(), fstest.MapFS{
		"proc/10/cgroup": {Data: []byte("1:cpu:/x\n0::/containers/plain\n")},
		"sys/fs/cgroup/containers/plain/memory.current": {Data: []byte("4096\n")},
		"sys/fs/cgroup/containers/plain/cpu.stat":       {Data: []byte("usage_usec 1234567\nuser_usec 1\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []control.Container{
		{Namespace: "system", ID: "plain", Name: "plain", Image: "i", Status: "running", PID: 10, Created: created, Memory: 4096, CPU: 1234},
		{Namespace: "system", ID: "3c4d", Name: "(sandbox)", Pod: "kube-system/etcd-a", Image: "i", Status: "created", Created: created},
		{Namespace: "system", ID: "1a2b", Name: "etcd", Pod: "kube-system/etcd-a", Image: "i", Status: "stopped", Created: created},
	}; !reflect.DeepEqual(list, want) {
		t.Errorf("%+v\nwant %+v", list, want)
	}
}

// A path in the control group's file leads nowhere else.
func TestUsageStaysInside(t *testing.T) {
	root := fstest.MapFS{"proc/1/cgroup": {Data: []byte("0::/../../../secret\n")}, "secret/memory.current": {Data: []byte("1")}}
	if memory, cpu := usage(root, 1); memory != 0 || cpu != 0 {
		t.Errorf("%d, %d", memory, cpu)
	}
}

func TestImages(t *testing.T) {
	f, c := serve(t)
	whole, _ := f.addImage(t, ocispec.ImageConfig{})
	f.images["b"] = whole
	broken := *f.add(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{})
	f.blobs[broken.Digest] = []byte("{}")
	f.images["a"] = &broken
	list, err := c.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.manifest(t.Context(), whole)
	if err != nil {
		t.Fatal(err)
	}
	want := []control.Image{
		{Namespace: "system", Name: "a", Digest: broken.Digest, Created: time.Unix(2000, 0).UTC()},
		{Namespace: "system", Name: "b", Digest: whole.Digest, Size: uint64(11000 + m.length + m.Config.Size), Created: time.Unix(2000, 0).UTC()},
	}
	if !reflect.DeepEqual(list, want) {
		t.Errorf("%+v\nwant %+v", list, want)
	}
	if _, err := c.manifest(t.Context(), &broken); err == nil || !strings.Contains(err.Error(), "digest is sha256:") {
		t.Errorf("%v, want the digest refused", err)
	}
}

func TestUnreachable(t *testing.T) {
	c, err := Connect(filepath.Join(t.TempDir(), "none"), System)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Images(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "none") {
		t.Errorf("%v", err)
	}
}

func TestImportLayout(t *testing.T) {
	f, c := serve(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"oci-layout": "{}", "index.json": strings.Repeat("x", 100), "blobs/sha256/a": "blob"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.ImportLayout(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(bytes.NewReader(f.arrived)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	slices.Sort(names)
	if got := fmt.Sprint(names); got != "[blobs/ blobs/sha256/ blobs/sha256/a index.json oci-layout]" {
		t.Error(got)
	}
	if err := c.ImportLayout(t.Context(), filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("%v", err)
	}
}

// A wire is a Network that writes down what it is asked.
type wire struct{ f *fake }

func (w wire) Attach(_ context.Context, c *static.Container, pid int) error {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	w.f.say(fmt.Sprintf("attach %s %d", c.Name, pid))
	return nil
}

func (w wire) Detach(_ context.Context, c *static.Container) error { return nil }

func runner(t *testing.T) (*fake, *Runner) {
	f, c := serve(t)
	return f, &Runner{Client: c, Dir: t.TempDir(), Network: wire{f}, Log: func(s string) { t.Log(s) }}
}

func TestRun(t *testing.T) {
	f, r := runner(t)
	target, chain := f.addImage(t, ocispec.ImageConfig{Entrypoint: []string{"/x"}, User: "7:8"})
	f.images["example.org/short:1"] = target
	var out, errs strings.Builder
	k := &static.Container{Name: "s", Image: "example.org/short:1", Network: static.NetworkBridge}
	// What is left of an earlier one.
	f.containers["s"], f.snapshots["kiln-s"] = &containerapi.Container{ID: "s"}, "old"
	f.tasks["s"] = &task{status: tasktypes.Status_RUNNING, ended: make(chan struct{})}
	if err := os.MkdirAll(filepath.Join(r.Dir, "s", "upper"), 0o700); err != nil {
		t.Fatal(err)
	}
	begun := func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		c := f.containers["s"]
		if c == nil {
			t.Error("there is no container")
			return
		}
		var spec specs.Spec
		if err := json.Unmarshal(c.GetSpec().GetValue(), &spec); err != nil || c.GetSpec().GetTypeUrl() != specType || spec.Process.User.UID != 7 {
			t.Errorf("%v: %+v", err, c)
		}
		if c.GetRuntime().GetName() != "io.containerd.runc.v2" || c.GetSnapshotter() != "overlayfs" || c.GetSnapshotKey() != "kiln-s" || f.snapshots["kiln-s"] != chain {
			t.Errorf("%+v, snapshots %v", c, f.snapshots)
		}
	}
	r.Network = seen{r.Network, begun}
	status, err := r.Run(t.Context(), k, &out, &errs)
	if status != 3 || err != nil || out.String() != "printed to stdout\n" || errs.String() != "printed to stderr\n" {
		t.Errorf("%d, %v, %q, %q", status, err, &out, &errs)
	}
	if got := strings.Join(f.said, ", "); got != "killed s, no task s, no container s, no snapshot kiln-s, "+
		"snapshot kiln-s, container s, task s, attach s 4711, start s, killed s, no task s, no container s, no snapshot kiln-s" {
		t.Error(got)
	}
	if left, err := os.ReadDir(r.Dir); len(left) != 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

// seen calls look when a container is attached.
type seen struct {
	Network
	look func()
}

func (s seen) Attach(ctx context.Context, c *static.Container, pid int) error {
	s.look()
	return s.Network.Attach(ctx, c, pid)
}

func TestRunPulls(t *testing.T) {
	f, r := runner(t)
	target, _ := f.addImage(t, ocispec.ImageConfig{Cmd: []string{"/x"}})
	f.pulls["example.org/short:1"] = target
	k := &static.Container{Name: "s", Image: "example.org/short:1", Pull: static.PullNever}
	if _, err := r.Run(t.Context(), k, io.Discard, io.Discard); !errors.Is(err, ErrNotFound) || len(f.said) != 0 {
		t.Errorf("%v, %v", err, f.said)
	}
	const pull = "pull example.org/short:1 as example.org/short:1 by /etc/containerd/certs.d"
	for _, c := range []struct {
		policy string
		want   bool
	}{{static.PullMissing, true}, {static.PullMissing, false}, {"", false}, {static.PullAlways, true}} {
		k.Pull, f.said = c.policy, nil
		if status, err := r.Run(t.Context(), k, io.Discard, io.Discard); status != 3 || err != nil {
			t.Errorf("%q: %d, %v", c.policy, status, err)
		}
		if got := slices.Contains(f.said, pull); got != c.want {
			t.Errorf("%q: %v, want a pull: %v", c.policy, f.said, c.want)
		}
	}
	k.Image = "example.org/none:1"
	if _, err := r.Run(t.Context(), k, io.Discard, io.Discard); err == nil || err.Error() != "image example.org/none:1: pull example.org/none:1: not found: example.org/none:1: not found" {
		t.Errorf("%v", err)
	}
}

func TestRunStops(t *testing.T) {
	for _, stubborn := range []bool{false, true} {
		f, r := runner(t)
		f.stubborn = stubborn
		target, _ := f.addImage(t, ocispec.ImageConfig{Cmd: []string{"/x"}, StopSignal: "QUIT"})
		f.images["i"] = target
		ctx, stop := context.WithCancel(t.Context())
		k := &static.Container{Name: "s", Image: "i", StopTimeout: 50 * time.Millisecond}
		go func() {
			for static.Started(r.Dir, "s") != nil {
				time.Sleep(time.Millisecond)
			}
			stop()
		}()
		status, err := r.Run(ctx, k, io.Discard, io.Discard)
		want, said := 128+3, "quit s"
		if stubborn {
			want, said = 128+9, "quit s, killed s"
		}
		if got := strings.Join(f.said, ", "); status != want || err != nil || !strings.Contains(got, "start s, "+said) || !strings.HasSuffix(got, "no snapshot kiln-s") {
			t.Errorf("%d, %v, %s; want %d, %s", status, err, got, want, said)
		}
	}
}
