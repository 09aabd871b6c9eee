//go:build linux

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/kubelet"
	"github.com/kilnhq/kiln/machine/service"
)

// ContainerdName is the service of containerd.
const ContainerdName = "containerd"

// Programs and places of what runs containers.
const (
	containerdProgram = "/usr/bin/containerd"
	containerdSocket  = "/run/containerd/containerd.sock"
	containerdConfig  = "/run/containerd/conf.d/10-kiln.toml"
	clientProgram     = "/usr/bin/containers"
	kubeletProgram    = "/usr/bin/kubelet"

	// pluginDir is where those put their CNI plugins who bring a pod network.
	pluginDir = "/var/opt/cni/bin"
)

// withoutKubelet turns off what only a kubelet asks: a server on a TCP port is
// part of it, and memory.
const withoutKubelet = `version = 4
disabled_plugins = [
  'io.containerd.cri.v1.images',
  'io.containerd.cri.v1.runtime',
  'io.containerd.grpc.v1.cri',
  'io.containerd.podsandbox.controller.v1.podsandbox',
]
`

// withKubelet lets the kubelet's server for streams listen on the node only.
const withKubelet = `version = 4
[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = '127.0.0.1'
`

// hasEphemeral reports whether what is below /var can be kept, and says so if not.
func (n *Node) hasEphemeral() bool {
	var root, v unix.Stat_t
	if err := errors.Join(unix.Stat("/", &root), unix.Stat(varDir, &v)); err != nil || root.Dev == v.Dev {
		n.remark(ContainerdName, "is not started: nothing is mounted on %s", varDir)
		return false
	}
	return true
}

// hasContainerd reports whether containerd is one of the services.
func (n *Node) hasContainerd() bool {
	_, err := n.services.Log(ContainerdName)
	return err == nil
}

// wantsKubelet reports whether a kubelet is to run.
func (n *Node) wantsKubelet() bool {
	c, _ := n.current()
	_, err := os.Stat(kubeletProgram)
	return c != nil && c.Kubelet != nil && err == nil
}

// containerd is the service of containerd.
func (n *Node) containerd(env []string) service.Spec {
	return service.Spec{
		Name: ContainerdName, Path: containerdProgram, Env: env, OOM: -999, KeepChildren: true,
		Before: func(context.Context, func(string)) {
			if _, err := n.configureContainerd(); err != nil {
				n.remark(ContainerdName, "%v", err)
			}
		},
		Health: func(ctx context.Context) error { return answers(ctx, "unix", containerdSocket) },
	}
}

// configureContainerd writes what containerd reads besides what the image has, and
// reports whether that has changed.
func (n *Node) configureContainerd() (changed bool, err error) {
	if err := errors.Join(os.MkdirAll(pluginDir, 0o755), os.MkdirAll(filepath.Dir(containerdConfig), 0o755)); err != nil {
		return false, err
	}
	text := withoutKubelet
	if n.wantsKubelet() {
		c, _ := n.current()
		text = withKubelet + kubelet.Runtime(c.Kubelet)
	}
	if old, err := os.ReadFile(containerdConfig); err == nil && string(old) == text {
		return false, nil
	}
	return true, os.WriteFile(containerdConfig, []byte(text), 0o644)
}

// asking is how long containerd may take for an answer; the program gives up on it
// a little earlier.
const asking = 40 * time.Second

// namespaceName is what containerd takes for a name space.
var namespaceName = regexp.MustCompile(`^[A-Za-z0-9]+([-._][A-Za-z0-9]+)*$`)

// askContainerd asks a question with a program that ends with its answer: at rest
// it takes no memory.
func (n *Node) askContainerd(ctx context.Context, namespace, verb string, answer any) error {
	if len(namespace) > 76 || !namespaceName.MatchString(namespace) {
		return fmt.Errorf("%w: name space %q of containerd", control.ErrInvalid, namespace)
	}
	if !n.hasContainerd() {
		return fmt.Errorf("%w: containerd is not one of the node's services", control.ErrState)
	}
	select { // every one of them takes some memory
	case n.workloads.questions <- struct{}{}:
		defer func() { <-n.workloads.questions }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	c := exec.CommandContext(ctx, clientProgram, "-namespace", namespace, verb)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr, c.Env = &stdout, &stderr, []string{"PATH=/usr/bin"}
	wait, err := n.options.Runner.Start(c)
	if err == nil {
		err = wait()
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return fmt.Errorf("containerd: %s", strings.TrimPrefix(strings.TrimSpace(stderr.String()), "containers: "))
	case err != nil:
		return err
	}
	return json.Unmarshal(stdout.Bytes(), answer)
}

// Containers is a verb of control.Node.
func (n *Node) Containers(ctx context.Context, r control.NamespaceRequest) (control.ContainerList, error) {
	var list control.ContainerList
	if err := n.askContainerd(ctx, r.Namespace, "list", &list); err != nil {
		return list, err
	}
	restarts := map[string]int{}
	for _, s := range n.services.List() {
		restarts[s.Name] = s.Restarts
	}
	for i := range list.Containers {
		if c := &list.Containers[i]; c.Namespace == systemNamespace {
			c.Restarts = uint32(restarts[c.ID])
		}
	}
	return list, nil
}

// systemNamespace is containerd's name space for the node's own containers.
const systemNamespace = "system"

// Images is a verb of control.Node.
func (n *Node) Images(ctx context.Context, r control.NamespaceRequest) (control.ImageList, error) {
	var list control.ImageList
	err := n.askContainerd(ctx, r.Namespace, "images", &list)
	return list, err
}
