//go:build linux

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/kubelet"
	"github.com/kilnhq/kiln/machine/modprobe"
	"github.com/kilnhq/kiln/machine/service"
)

// Names of the services.
const (
	kubeletName = "kubelet"
	kubeadmName = "kubeadm"
)

const (
	kubeadmProgram = "/usr/bin/kubeadm" // of the extension kubernetes, as the kubelet

	// kubernetesDir has what /etc/kubernetes is mounted from, and cniDir what
	// /etc/cni/net.d is: installers of pod networks write there.
	kubernetesDir = "/var/lib/kubernetes"
	cniDir        = "/var/lib/cni/net.d"

	// initialized is there when kubeadm has set up the cluster.
	initialized = kubernetesDir + "/kiln-initialized"
)

// A keeper runs the kubelet as the configuration says.
type keeper struct {
	node   *Node
	wake   chan struct{} // something that matters may have changed
	spec   *service.Spec // what the kubelet was started with
	config []byte        // likewise
	told   string        // why it was not, last
}

// wakeKubelet makes the keeper look again.
func (n *Node) wakeKubelet() {
	select {
	case n.kubelet.wake <- struct{}{}:
	default:
	}
}

// prepareKubernetes makes what can be written to appear where Kubernetes looks for
// it, before containerd starts to watch that. It is nothing if the image has no
// kubelet.
func (n *Node) prepareKubernetes() error {
	if _, err := os.Stat(kubeletProgram); err != nil {
		return nil
	}
	for _, dir := range []string{kubernetesDir + "/manifests", cniDir, kubelet.PluginDir, "/var/log/pods", "/var/log/containers"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(kubernetesDir, 0o700); err != nil {
		return err
	}
	// The node's own network of pods, which that of a cluster can replace: the
	// first file in the order of names counts.
	own, err := os.ReadFile("/etc/cni/net.d/10-kiln.conflist")
	if err != nil {
		return err
	}
	if _, err := replaceFile(filepath.Join(cniDir, "10-kiln.conflist"), own, 0o644); err != nil {
		return err
	}
	for from, to := range map[string]string{kubernetesDir: kubelet.Dir, cniDir: "/etc/cni/net.d"} {
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s over %s: %w", from, to, err)
		}
	}
	return nil
}

// replaceFile gives a file another content, at once, and reports whether it had
// not had that.
func replaceFile(name string, data []byte, mode fs.FileMode) (changed bool, err error) {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	// A name that begins with a dot is none of a static pod.
	temporary := filepath.Join(filepath.Dir(name), "."+filepath.Base(name))
	if err := os.WriteFile(temporary, data, mode); err != nil {
		return false, err
	}
	if err := os.Chmod(temporary, mode); err != nil {
		return false, err
	}
	return true, os.Rename(temporary, name)
}

// pollKubelet is how often the keeper looks for what nobody tells it of: a file of
// kubeadm, the clock.
const pollKubelet = time.Second

// run keeps the kubelet until ctx ends.
func (k *keeper) run(ctx context.Context) {
	select {
	case <-k.node.decided: // and all is prepared
	case <-ctx.Done():
	}
	for ctx.Err() == nil {
		wait, err := k.step()
		why := wait
		if err != nil {
			why = err.Error()
		}
		if why != k.told {
			if err != nil {
				k.node.remark("kubelet", "%v", err)
			} else if why != "" {
				k.node.event("kubelet", "waits", why, nil)
			}
			k.told = why
		}
		var again <-chan time.Time
		if why != "" {
			again = time.After(pollKubelet)
		}
		select {
		case <-k.wake:
		case <-again:
		case <-ctx.Done():
		}
	}
}

// step does what there is to do. wait is for what the rest has to wait; it is empty
// if there is nothing more to do until something changes.
func (k *keeper) step() (wait string, err error) {
	n := k.node
	c, _ := n.current()
	if c == nil || c.Kubelet == nil {
		k.forget()
		return "", k.writePods(nil)
	}
	if _, err := os.Stat(kubeletProgram); err != nil {
		return "", errors.New("the configuration has a Kubelet, and the image has none: add the extension kubernetes")
	}
	n.mu.Lock()
	status := n.status
	n.mu.Unlock()
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	node := kubelet.Node{Hostname: host, Addresses: status.Addresses(), Joined: exists(kubelet.Kubeconfig)}
	if err := k.writePods(c.StaticPods); err != nil {
		return "", err
	}
	if kubelet.InCluster(c, node) {
		if wait := k.clusterNeeds(c, node, status.Ready); wait != "" {
			return wait, nil
		}
		if err := k.bootstrap(c.Kubelet); err != nil {
			return "", err
		}
		if c.ControlPlane != nil {
			wait, err := k.initialize(c, node)
			if err != nil || wait != "" && (!node.Joined || exists(initialized)) {
				return wait, err
			}
		}
	}
	if err := k.start(c, node); err != nil {
		return "", err
	}
	if c.ControlPlane != nil && !exists(initialized) {
		return "for kubeadm", nil
	}
	return "", nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// clusterNeeds returns what the kubelet of a cluster has to wait for. Certificates
// are not valid before the clock is right.
func (k *keeper) clusterNeeds(c *config.Config, node kubelet.Node, ready bool) string {
	switch {
	case !ready || !kubelet.Address(c.Kubelet, node.Addresses).IsValid():
		return "for an address"
	case !k.node.clock.settled(c):
		return "for the time"
	}
	return ""
}

// bootstrap writes what the kubelet joins a cluster with.
func (k *keeper) bootstrap(c *config.Kubelet) error {
	kubeconfig := []byte(c.BootstrapKubeconfig.Reveal())
	if len(kubeconfig) == 0 {
		err := os.Remove(kubelet.Bootstrap)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	ca, err := kubelet.CA(kubeconfig)
	if err != nil {
		return fmt.Errorf("bootstrapKubeconfig: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(kubelet.CAFile), 0o755); err != nil {
		return err
	}
	if _, err := replaceFile(kubelet.CAFile, ca, 0o644); err != nil {
		return err
	}
	_, err = replaceFile(kubelet.Bootstrap, kubeconfig, 0o600)
	return err
}

// writePods writes the static pods of the configuration, and removes those that it
// does not have any more.
func (k *keeper) writePods(pods []config.StaticPod) error {
	entries, err := os.ReadDir(kubelet.ManifestDir)
	if errors.Is(err, fs.ErrNotExist) && len(pods) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	want, err := kubelet.Pods(pods)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if want[e.Name()] == nil && kubelet.IsPod(e.Name()) {
			if err := os.Remove(filepath.Join(kubelet.ManifestDir, e.Name())); err != nil {
				return err
			}
			k.node.event("kubelet", e.Name(), "static pod removed", nil)
		}
	}
	for name, data := range want {
		changed, err := replaceFile(filepath.Join(kubelet.ManifestDir, name), data, 0o600)
		if err != nil {
			return err
		}
		if changed {
			k.node.event("kubelet", name, "static pod written", nil)
		}
	}
	return nil
}

// start starts the kubelet, or starts it anew if it is to be another one.
func (k *keeper) start(c *config.Config, node kubelet.Node) error {
	data, err := kubelet.Configuration(c, node)
	if err != nil {
		return err
	}
	file := filepath.Join(k.node.options.RunDir, "kubelet.json")
	spec := &service.Spec{
		Name: kubeletName, Path: kubeletProgram, Args: kubelet.Args(c, node, file), Env: []string{programPath},
		After: k.node.imageServices(), OOM: -999, Health: healthy, Cgroup: filepath.Join(groupRoot, systemGroup, kubeletName),
	}
	if k.spec != nil && reflect.DeepEqual(k.spec.Args, spec.Args) && bytes.Equal(k.config, data) {
		return nil
	}
	k.forget()
	if err := k.prepareKernel(); err != nil {
		k.node.remark("kubelet", "%v", err)
	}
	if _, err := replaceFile(file, data, 0o600); err != nil {
		return err
	}
	if err := k.node.services.Add(*spec); err != nil {
		return err
	}
	k.spec, k.config = spec, data
	return nil
}

// forget ends the kubelet. Its pods go on.
func (k *keeper) forget() {
	if k.spec != nil {
		_ = k.node.services.Remove(kubeletName) // ErrUnknown: it is not there
		k.spec = nil
	}
}

// prepareKernel makes the kernel forward packets, and look at those between pods of
// one node as at others.
func (k *keeper) prepareKernel() error {
	var said bytes.Buffer
	for _, m := range []string{"br_netfilter", "ip_tables", "ip6_tables"} {
		if modprobe.Main([]string{m}, io.Discard, &said) != 0 {
			return fmt.Errorf("modprobe: %s", bytes.TrimSpace(said.Bytes()))
		}
	}
	var failed []error
	for _, name := range []string{"net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		failed = append(failed, os.WriteFile("/proc/sys/"+name, []byte("1\n"), 0))
	}
	return errors.Join(failed...)
}

// healthy asks the kubelet how it is.
func healthy(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, kubelet.HealthURL, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 4096))
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", answer.Status, bytes.TrimSpace(text))
	}
	return nil
}

// Kubeconfig is a verb of control.Node.
func (n *Node) Kubeconfig(context.Context) (control.Kubeconfig, error) {
	data, err := os.ReadFile(kubelet.AdminConfig)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: the node has no control plane, or not yet", control.ErrState)
	}
	return control.Kubeconfig{Kubeconfig: data}, err
}
