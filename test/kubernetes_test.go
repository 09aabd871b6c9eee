//go:build linux

package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs"
	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// pauser holds the name spaces of a pod.
const pauser = `package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range c {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
`

// helloer says what a pod is like from the inside, and then answers who asks.
const helloer = `package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
)

func main() {
	addresses, _ := net.InterfaceAddrs()
	status, _ := os.ReadFile("/proc/self/status")
	_, mode, _ := strings.Cut(string(status), "Seccomp:")
	mode, _, _ = strings.Cut(strings.TrimSpace(mode), "\n")
	mounts, _ := os.ReadFile("/proc/mounts")
	volume := "none"
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[1] == "/volume" {
			volume = f[2]
		}
	}
	fmt.Printf("hello: addresses %v, seccomp %s, volume %s\n", addresses, mode, volume)
	fmt.Println(http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s\n", r.URL.Path)
	})))
}
`

// helloPod returns a pod that says hello, on any node, or on that of the name.
func helloPod(name, node string) string {
	return fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "%s"}, "spec": {"nodeName": "%s",
	"containers": [{"name": "hello", "image": "kiln.local/hello:1", "resources": {"limits": {"memory": "64Mi"}},
		"volumeMounts": [{"name": "volume", "mountPath": "/volume"}]}],
	"volumes": [{"name": "volume", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]}}`, name, node)
}

// oneProgram returns the program of a single file of Go.
func oneProgram(t *testing.T, source string) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module program\n\ngo 1.24\n"), 0o600),
		os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600)); err != nil {
		t.Fatal(err)
	}
	return userland(t, rootfs.Program{Package: "."}, dir)
}

func userland(t *testing.T, p rootfs.Program, dir string) []byte {
	t.Helper()
	data, err := rootfs.BuildProgram(t.Context(), rootfs.Sources{Arch: "amd64", GoDir: dir}, p)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// archive writes an image with one program, by all the names, into dir. The first
// is what it starts.
func archive(t *testing.T, dir, tag string, program []byte, entry string, names ...string) string {
	t.Helper()
	root := tree.New()
	err := root.Add(entry, &tree.Inode{Mode: 0o755, Content: extent.Bytes(program)})
	for _, n := range names {
		err = errors.Join(err, root.Add(n, &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: entry}))
	}
	if err != nil {
		t.Fatal(err)
	}
	layer, err := ociimage.Layer(t.Context(), root, ociimage.None)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) > 0 { // the name decides
		_, entry, _ = strings.Cut(tag, "/")
		entry, _, _ = strings.Cut(entry, ":")
	}
	img, err := ociimage.Image(ociimage.Config{Architecture: "amd64", Entrypoint: []string{"/" + entry}, Env: []string{"PATH=/"}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := ocilayout.WriteArchive(t.Context(), &buf, img, tag); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, strings.NewReplacer("/", "-", ":", "-").Replace(tag)+".tar")
	if err := os.WriteFile(file, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// helloImages returns archives of what a pod that says hello needs.
func helloImages(t *testing.T) []string {
	dir := t.TempDir()
	return []string{
		archive(t, dir, "kiln.local/pause:1", oneProgram(t, pauser), "pause"),
		archive(t, dir, "kiln.local/hello:1", oneProgram(t, helloer), "hello"),
	}
}

// A kubeNode is a machine with the extension kubernetes.
type kubeNode struct {
	remote
	*vm.Machine
	ctx     context.Context
	began   time.Time
	machine string // file with the configuration without what came with the test
	dir     string
}

// newKubeNode starts a machine with images in its image cache and more documents in
// its configuration.
func newKubeNode(t *testing.T, patience time.Duration, images []string, documents string, c vm.Config) *kubeNode {
	t.Helper()
	n := &kubeNode{dir: t.TempDir()}
	n.kiln = oracle.Artifact(t, "KILN_BIN")
	run(t, n.kiln, "config", "generate", "--hostname", "node1", "--address", "127.0.0.1", "--output", n.dir)
	n.machine, n.contexts = filepath.Join(n.dir, "machine.yaml"), filepath.Join(n.dir, "client.yaml")
	config := n.with(t, documents)
	disk := filepath.Join(n.dir, "disk.raw")
	args := []string{"build", "metal", "--progress", "none", "--no-sidecars", "--base", oracle.Artifact(t, "KILN_BASE_CONTAINERS"),
		"--extension", oracle.Artifact(t, "KILN_KUBERNETES"), "--config", config, "--size", "8GiB", "--output", disk}
	for _, i := range images {
		args = append(args, "--image-cache", i)
	}
	run(t, n.kiln, args...)
	port := freePort(t)
	ports := map[int]int{port: 50000}
	maps.Copy(ports, c.Forward)
	c.Image, c.Firmware, c.Forward = disk, vm.BIOS, ports
	n.endpoint, n.began = fmt.Sprintf("127.0.0.1:%d", port), time.Now()
	n.ctx, n.Machine = startWithin(t, patience, c)
	ready(t, n.ctx, n.Machine)
	return n
}

// with returns a file with the configuration and more documents.
func (n *kubeNode) with(t *testing.T, documents string) string {
	t.Helper()
	data, err := os.ReadFile(n.machine)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(n.dir, "whole.yaml")
	if err := os.WriteFile(file, append(data, documents...), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// reaches tries until it is so, and says how long that took.
func (n *kubeNode) reaches(t *testing.T, what string, try func() error) {
	t.Helper()
	for {
		err := try()
		if err == nil {
			t.Logf("%s: %.0f s", what, time.Since(n.began).Seconds())
			return
		}
		select {
		case <-n.ctx.Done():
			for _, service := range []string{"kubeadm", "kubelet", "containerd"} {
				out, _ := n.command("logs", service, "--tail", "40").CombinedOutput()
				t.Logf("%s:\n%s", service, out)
			}
			t.Fatalf("%s: %v", what, err)
		case <-time.After(2 * time.Second):
		}
	}
}

// says returns whether a line of the log of a pod in the name space default matches.
func (n *kubeNode) says(line string) error {
	out, err := n.command("ls", "--recursive", "/var/log/pods", "--output", "json").Output()
	if err != nil {
		return fmt.Errorf("ls: %w", err)
	}
	file := regexp.MustCompile(`/var/log/pods/default_hello-?[^/"]*/hello/\d+\.log`).Find(out)
	if file == nil {
		return errors.New("no log of a pod hello")
	}
	out, err = n.command("read", string(file)).Output()
	if err == nil && !regexp.MustCompile(line).Match(out) {
		err = fmt.Errorf("%s: %s", file, out)
	}
	return err
}

// A node without a cluster runs the static pods of its configuration, for as long as
// they are in there, and nobody can talk to its kubelet.
func TestStaticPod(t *testing.T) {
	if os.Getenv("KILN_KUBERNETES") == "" {
		t.Skip("SKIPPED: KILN_KUBERNETES is not set; 'make test-full' builds the extension kubernetes and sets it")
	}
	const documents = "---\napiVersion: v1alpha1\nkind: Kubelet\nsandboxImage: kiln.local/pause:1\n"
	n := newKubeNode(t, 6*patience, helloImages(t), documents+"---\napiVersion: v1alpha1\nkind: StaticPod\nname: hello\npod: "+helloPod("hello", "")+"\n", vm.Config{Memory: 1536, CPUs: 2})
	n.reaches(t, "the static pod says hello", func() error {
		return n.says(`hello: addresses \[127\.0\.0\.1/8 .*10\.244\.0\.\d+/24.*\], seccomp 2, volume tmpfs`)
	})
	listensOnly(t, n.remote, true)
	n.run(t, "config", "apply", n.with(t, documents))
	n.reaches(t, "the static pod is gone", func() error {
		out, err := n.command("ps").Output()
		if err == nil && bytes.Contains(out, []byte(" /hello")) {
			err = fmt.Errorf("it runs: %s", out)
		}
		return err
	})
	shutdown(t, n.ctx, n.Machine)
}

// controlPlane is a cluster that a slow machine can run.
const controlPlane = `---
apiVersion: v1alpha1
kind: Kubelet
sandboxImage: kiln.local/pause:1
---
apiVersion: v1alpha1
kind: ControlPlane
cluster:
  imageRepository: kiln.local
  encryptionAlgorithm: ECDSA-P256
  dns: {disabled: true}
  proxy: {disabled: true}
  apiServer: {certSANs: [10.0.2.100]}
  etcd: {local: {dataDir: /var/lib/etcd, extraArgs: [{name: unsafe-no-fsync, value: "true"}]}}
  controllerManager: {extraArgs: [{name: leader-elect, value: "false"}]}
  scheduler: {extraArgs: [{name: leader-elect, value: "false"}]}
init:
  nodeRegistration: {taints: []}
  timeouts: {controlPlaneComponentHealthCheck: 30m, kubeletHealthCheck: 30m, kubernetesAPICall: 10m, etcdAPICall: 10m}
`

// A node becomes a cluster of its own, from images that it was built with, a pod of
// that cluster answers, and another node joins.
func TestKubeadm(t *testing.T) {
	full(t)
	const version = "v1.36.3"
	dir := t.TempDir()
	hello := helloImages(t)
	images := append(slices.Clone(hello),
		archive(t, dir, "kiln.local/pause:3.10.2", oneProgram(t, pauser), "pause"),
		archive(t, dir, "kiln.local/etcd:3.6.8-0", userland(t, rootfs.Program{Package: "go.etcd.io/etcd/server/v3"}, "../rootfs/userland/etcd"), "etcd"))
	values := map[string]string{}
	for name, value := range map[string]string{"gitVersion": version, "gitMajor": "1", "gitMinor": "36", "gitTreeState": "clean"} {
		values["k8s.io/component-base/version."+name] = value
	}
	parts := []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"}
	program := userland(t, rootfs.Program{Package: ".", Values: values}, "../rootfs/userland/controlplane")
	for _, name := range parts {
		images = append(images, archive(t, dir, "kiln.local/"+name+":"+version, program, "controlplane", parts...))
	}
	port := freePort(t)
	n := newKubeNode(t, 60*time.Minute, images, controlPlane, vm.Config{Memory: 3072, CPUs: 2, Forward: map[int]int{port: 6443}})
	n.reader(t).refused(t, []string{"kubeconfig"}, "reader", "admin")
	var c *cluster
	n.reaches(t, "kubeadm has written a kubeconfig", func() error {
		out, err := n.command("kubeconfig").Output()
		if err == nil {
			c, err = newCluster(out, port)
		}
		return err
	})
	n.reaches(t, "the node is ready", func() error { return c.ready(n.ctx, "node1") })
	n.reaches(t, "the cluster has a pod", func() error {
		return c.call(n.ctx, http.MethodPost, "/api/v1/namespaces/default/pods", []byte(helloPod("hello", "")), nil)
	})
	n.reaches(t, "the pod answers", func() error {
		var answer bytes.Buffer
		err := c.call(n.ctx, http.MethodGet, "/api/v1/namespaces/default/pods/hello:8080/proxy/from/outside", nil, &answer)
		if err == nil && answer.String() != "hello /from/outside\n" {
			err = fmt.Errorf("it says %q", answer.String())
		}
		return err
	})
	n.reaches(t, "kubeadm is done", func() error {
		_, err := n.command("ls", "/var/lib/kubernetes/kiln-initialized").Output()
		return err
	})
	var memory []struct {
		Total, Available uint64 `json:",string"`
	}
	n.json(t, &memory, "memory")
	t.Logf("memory in use: %d MiB", (memory[0].Total-memory[0].Available)>>20)
	joins(t, n, c, hello)
	shutdown(t, n.ctx, n.Machine)
}

// joins starts a machine that joins the cluster with a bootstrap token, over
// nothing but the API server's port, and is given a pod.
func joins(t *testing.T, first *kubeNode, c *cluster, images []string) {
	t.Helper()
	const secret = `{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bootstrap-token-node02"}, "type": "bootstrap.kubernetes.io/token", "stringData": {
		"token-id": "node02", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
		"auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token"}}`
	if err := c.call(first.ctx, http.MethodPost, "/api/v1/namespaces/kube-system/secrets", []byte(secret), nil); err != nil {
		t.Fatal(err)
	}
	const documents = `---
apiVersion: v1alpha1
kind: Kubelet
nodeName: node2
sandboxImage: kiln.local/pause:1
bootstrapKubeconfig: |
  apiVersion: v1
  kind: Config
  current-context: home
  contexts: [{name: home, context: {cluster: home, user: bootstrap}}]
  clusters: [{name: home, cluster: {server: "https://10.0.2.100:6443", certificate-authority-data: %s}}]
  users: [{name: bootstrap, user: {token: node02.0123456789abcdef}}]
`
	n := newKubeNode(t, 30*time.Minute, images, fmt.Sprintf(documents, c.ca), vm.Config{Memory: 1536, Serve: relayed(t, "10.0.2.100:6443", c.address)})
	n.reaches(t, "the second node is ready", func() error { return c.ready(n.ctx, "node2") })
	if err := c.call(n.ctx, http.MethodPost, "/api/v1/namespaces/default/pods", []byte(helloPod("hello-second", "node2")), nil); err != nil {
		t.Fatal(err)
	}
	n.reaches(t, "the second node's pod says hello", func() error { return n.says("hello: addresses .*seccomp 2") })
	n.reaches(t, "and runs, as the API server knows", func() error {
		var pod struct{ Status struct{ Phase string } }
		err := c.call(n.ctx, http.MethodGet, "/api/v1/namespaces/default/pods/hello-second", nil, &pod)
		if err == nil && pod.Status.Phase != "Running" {
			err = fmt.Errorf("phase %q", pod.Status.Phase)
		}
		return err
	})
	shutdown(t, n.ctx, n.Machine)
}

// reader returns a client that may read only.
func (n *kubeNode) reader(t *testing.T) remote {
	t.Helper()
	r := n.remote
	r.contexts = filepath.Join(n.dir, "reader.yaml")
	run(t, n.kiln, "config", "client", "--ca", filepath.Join(n.dir, "ca.pem"), "--role", "reader", "--address", "127.0.0.1", "--output", r.contexts)
	return r
}

// A cluster is a client of a Kubernetes API server.
type cluster struct {
	client  *http.Client
	address string // of the server
	ca      string // certificate of the cluster, in PEM and base64
}

// newCluster returns that of a kubeconfig, at a port of this machine.
func newCluster(kubeconfig []byte, port int) (*cluster, error) {
	var v struct {
		Clusters []struct {
			Cluster struct {
				CA string `yaml:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Certificate string `yaml:"client-certificate-data"`
				Key         string `yaml:"client-key-data"`
			}
		}
	}
	if err := yaml.Load(kubeconfig, &v); err != nil {
		return nil, err
	}
	if len(v.Clusters) != 1 || len(v.Users) != 1 {
		return nil, fmt.Errorf("kubeconfig with %d clusters and %d users, want one of each", len(v.Clusters), len(v.Users))
	}
	var parts [3][]byte
	for i, s := range []string{v.Clusters[0].Cluster.CA, v.Users[0].User.Certificate, v.Users[0].User.Key} {
		var err error
		if parts[i], err = base64.StdEncoding.DecodeString(s); err != nil {
			return nil, err
		}
	}
	pair, err := tls.X509KeyPair(parts[1], parts[2])
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(parts[0])
	address := fmt.Sprintf("127.0.0.1:%d", port)
	return &cluster{address: address, ca: v.Clusters[0].Cluster.CA, client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: "kubernetes"},
	}}}, nil
}

// ready returns nil if a node is.
func (c *cluster) ready(ctx context.Context, name string) error {
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := c.call(ctx, http.MethodGet, "/api/v1/nodes/"+name, nil, &node); err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == "Ready" && condition.Status == "True" {
			return nil
		}
	}
	return fmt.Errorf("%s: %+v", name, node)
}

// call asks, and puts the answer into v: the text, or what its JSON says.
func (c *cluster) call(ctx context.Context, method, path string, body []byte, v any) error {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+c.address+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := c.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 16<<20))
	if err != nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, text)
	}
	switch v := v.(type) {
	case nil:
		return nil
	case *bytes.Buffer:
		v.Write(text)
		return nil
	default:
		return json.Unmarshal(text, v)
	}
}
