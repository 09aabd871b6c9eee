//go:build linux

package test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs"
)

// waiter is a service that says hello, answers on a port, and ends when it is told
// to, by a signal or by whoever asks for /exit.
const waiter = `package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	_, err := os.Create("/made")
	fmt.Println("hello from", os.Args[1:], os.Getenv("GREETING"), err)
	if os.Args[1] == "extension" {
		return
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() {
		<-ended
		fmt.Println("goodbye")
		os.Exit(0)
	}()
	http.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) { os.Exit(1) })
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("asked for", r.URL.Path)
		fmt.Fprintln(w, "waiter")
	})
	fmt.Println(http.ListenAndServe(":8080", nil))
}
`

// What the machine of TestServices is to run.
const (
	waiterService = `---
apiVersion: v1alpha1
kind: Service
name: waiter
image: example.org/greet:1
pull: never
args: [web]
environment: {GREETING: good day}
network: bridge
ports: [{host: 8080, container: 8080}]
resources: {memory: 64MiB}
waitFor: {services: [ext-import], network: true}
stopTimeout: 5s
`
	// A program of the node brings in the image, which has to come from somewhere.
	importExtension = `name: import
runnerMode: host
container: {entrypoint: /usr/bin/containers, args: [import, /usr/local/share/waiter.tar]}
depends: [{service: cri}]
restart: untilSuccess
`
	helloExtension = `name: hello
container:
  entrypoint: ./hello
  args: [extension]
  environment: [GREETING=good evening]
  mounts: [{source: /var/log, destination: /log, type: bind, options: [rbind, rw]}]
  security: {writeableRootfs: true}
depends: [{configuration: true}, {path: /var}]
restart: never
logToConsole: true
`
)

type listedService struct {
	Name, State, Message string
	Restarts             int
}

// service returns what the node says of a service.
func (r remote) service(t *testing.T, name string) listedService {
	t.Helper()
	var nodes []struct{ Services []listedService }
	r.json(t, &nodes, "services")
	for _, s := range nodes[0].Services {
		if s.Name == name {
			return s
		}
	}
	return listedService{}
}

// await waits until a service is in a state.
func (r remote) await(t *testing.T, name, state string) listedService {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(time.Second) {
		s := r.service(t, name)
		if s.State == state {
			return s
		}
		if time.Since(begin) > patience {
			t.Fatalf("%+v, want %s", s, state)
		}
	}
}

// get asks a web server until it answers.
func get(t *testing.T, url string) string {
	t.Helper()
	c := http.Client{Timeout: 10 * time.Second}
	for begin := time.Now(); ; time.Sleep(time.Second) {
		r, err := c.Get(url)
		if err == nil {
			body, err := io.ReadAll(r.Body)
			r.Body.Close()
			if err == nil {
				return string(body)
			}
		}
		if time.Since(begin) > patience/2 {
			t.Fatal(err)
		}
	}
}

// A node runs containers of its own: from its configuration, with a network behind
// the node, and from a system extension; they are seen, started, stopped and heard
// through its API.
func TestServices(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIPPED: boots a machine")
	}
	kiln, base := oracle.Artifact(t, "KILN_BIN"), oracle.Artifact(t, "KILN_BASE_CONTAINERS")
	dir := t.TempDir()
	write := func(name string, data []byte, mode os.FileMode) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("src/go.mod", []byte("module waiter\n\ngo 1.24\n"), 0o600)
	write("src/main.go", []byte(waiter), 0o600)
	program, err := rootfs.BuildProgram(t.Context(), rootfs.Sources{Arch: "amd64", GoDir: filepath.Join(dir, "src")}, rootfs.Program{Package: "."})
	if err != nil {
		t.Fatal(err)
	}
	write("ext/manifest.yaml", []byte("version: v1alpha1\nmetadata: {name: services, version: 1.0.0}\n"), 0o644)
	write("ext/rootfs/usr/local/share/waiter.tar", imageArchive(t, program), 0o644)
	write("ext/rootfs/usr/local/lib/containers/hello/hello", program, 0o755)
	write("ext/rootfs/usr/local/etc/containers/import.yaml", []byte(importExtension), 0o644)
	write("ext/rootfs/usr/local/etc/containers/hello.yaml", []byte(helloExtension), 0o644)
	run(t, kiln, "config", "generate", "--hostname", "node1", "--address", "127.0.0.1", "--output", filepath.Join(dir, "config"))
	plain := filepath.Join(dir, "config/machine.yaml")
	config, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	write("whole.yaml", append(config, waiterService...), 0o600)
	disk := filepath.Join(dir, "disk.raw")
	run(t, kiln, "build", "metal", "--base", base, "--extension", filepath.Join(dir, "ext"), "--config", filepath.Join(dir, "whole.yaml"), "--size", "3GiB", "--no-sidecars", "--output", disk)

	api, web := freePort(t), freePort(t)
	ctx, m := startWithin(t, 3*patience, vm.Config{Image: disk, Firmware: vm.BIOS, Memory: 1536, Forward: map[int]int{api: 50000, web: 8080}})
	ready(t, ctx, m)
	begin := time.Now()
	admin := remote{kiln: kiln, endpoint: fmt.Sprintf("127.0.0.1:%d", api), contexts: filepath.Join(dir, "config/client.yaml")}
	url := fmt.Sprintf("http://127.0.0.1:%d", web)

	admin.await(t, "waiter", "running")
	t.Logf("the container runs %.1f s after the node is ready", time.Since(begin).Seconds())
	if body := get(t, url+"/first"); body != "waiter\n" {
		t.Errorf("the service answers %q", body)
	}
	if log := admin.run(t, "logs", "waiter"); !strings.Contains(log, "hello from [web] good day") || !strings.Contains(log, "read-only file system") ||
		!strings.Contains(log, "asked for /first") {
		t.Errorf("log:\n%s", log)
	}
	var nodes []struct {
		Containers []struct {
			ID, Image, Status string
			PID               int
			Memory            uint64 `json:",string"`
		}
		Images []struct{ Name, Digest string }
	}
	admin.json(t, &nodes, "containers")
	if c := nodes[0].Containers; len(c) == 0 || c[len(c)-1].ID != "waiter" || c[len(c)-1].Image != "example.org/greet:1" || c[len(c)-1].Status != "running" ||
		c[len(c)-1].PID == 0 || c[len(c)-1].Memory == 0 {
		t.Errorf("containers: %+v", nodes)
	}
	admin.json(t, &nodes, "images")
	if i := nodes[0].Images; len(i) != 1 || i[0].Name != "example.org/greet:1" || !strings.HasPrefix(i[0].Digest, "sha256:") {
		t.Errorf("images: %+v", nodes)
	}
	if out := admin.run(t, "ps"); !strings.Contains(out, "/greet web") {
		t.Errorf("ps:\n%s", out)
	}
	// What ends is started again.
	before := admin.service(t, "waiter").Restarts // it may have started before its image was there
	follow := admin.command("logs", "--follow", "--tail", "0", "waiter")
	lines, err := follow.StdoutPipe()
	if err == nil {
		err = follow.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = follow.Process.Kill(); _ = follow.Wait() }()
	c := http.Client{Timeout: 5 * time.Second}
	if r, err := c.Get(url + "/exit"); err == nil {
		r.Body.Close()
	}
	s := bufio.NewScanner(lines)
	for s.Scan() && !strings.Contains(s.Text(), "hello from [web]") {
	}
	if err := s.Err(); err != nil {
		t.Error(err)
	}
	if body := get(t, url+"/second"); body != "waiter\n" {
		t.Errorf("the service answers %q", body)
	}
	if s := admin.await(t, "waiter", "running"); s.Restarts != before+1 {
		t.Errorf("%+v, want %d restarts", s, before+1)
	}

	admin.run(t, "service", "stop", "waiter")
	if log := admin.run(t, "logs", "waiter"); !strings.HasSuffix(log, "goodbye\n") {
		t.Errorf("log:\n%s", log)
	}
	nodes = nil
	if admin.json(t, &nodes, "containers"); strings.Contains(fmt.Sprint(nodes), "waiter") {
		t.Errorf("containers: %+v", nodes)
	}
	admin.run(t, "service", "start", "waiter")
	get(t, url+"/third")

	if log := admin.run(t, "logs", "ext-hello"); !strings.Contains(log, "hello from [extension] good evening <nil>") {
		t.Errorf("log:\n%s", log)
	}
	if !strings.Contains(m.Console(), "ext-hello: hello from [extension]") {
		t.Error("the console does not show what the extension's service prints")
	}
	admin.run(t, "config", "apply", plain) // which has no service
	for begin := time.Now(); admin.service(t, "waiter").Name != ""; time.Sleep(time.Second) {
		if time.Since(begin) > time.Minute {
			t.Fatal("the service is still there, without a configuration")
		}
	}
	listensOnly(t, admin, false)
	var memory []struct {
		Total, Free, Buffers, Cached, Shared uint64 `json:",string"`
	}
	admin.json(t, &memory, "memory")
	// What the kernel keeps free for itself is not counted: it depends on the machine.
	used := memory[0].Total - memory[0].Free - memory[0].Buffers - memory[0].Cached + memory[0].Shared
	t.Logf("without containers %d MiB are in use\n%s", used>>20, admin.run(t, "ps"))
	if used > 200<<20 {
		t.Errorf("memory: %+v; want at most 200 MiB in use", memory)
	}
	shutdown(t, ctx, m)
}
