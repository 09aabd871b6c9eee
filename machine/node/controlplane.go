//go:build linux

package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/kubelet"
	"github.com/kilnhq/kiln/machine/service"
)

// initialize makes kubeadm set up the cluster that begins with this node, unless it
// has. It is tried again until it succeeds: what one attempt has made the next one
// uses.
func (k *keeper) initialize(c *config.Config, node kubelet.Node) (wait string, err error) {
	n := k.node
	s, added := n.service(kubeadmName)
	switch {
	case exists(initialized):
		return k.renew(c, node)
	case added && s.State != service.Done:
		return "for kubeadm", nil
	case added:
		n.event("kubelet", "cluster", "has begun", nil)
		return "", os.WriteFile(initialized, nil, 0o600)
	}
	if err := k.prepareKernel(); err != nil {
		n.remark("kubelet", "%v", err)
	}
	return "for kubeadm", k.kubeadm(c, node, service.OnFailure, "init")
}

// renew makes kubeadm renew the certificates of the control plane if half of their
// time is over: before the kubelet starts, which starts those who use them. A
// failure is in kubeadm's log, and no reason not to start what there is.
func (k *keeper) renew(c *config.Config, node kubelet.Node) (wait string, err error) {
	if k.spec != nil {
		return "", nil
	}
	if s, added := k.node.service(kubeadmName); added {
		if s.State == service.Done || s.State == service.Failed {
			return "", nil
		}
		return "for kubeadm to renew certificates", nil
	}
	data, err := os.ReadFile(kubelet.ServerCertificate)
	if err != nil {
		return "", err
	}
	if old, err := kubelet.IsOld(data, time.Now()); err != nil || !old {
		return "", err
	}
	return "for kubeadm to renew certificates", k.kubeadm(c, node, service.Never, "certs", "renew", "all")
}

// kubeadm starts it.
func (k *keeper) kubeadm(c *config.Config, node kubelet.Node, restart service.Restart, args ...string) error {
	n := k.node
	version, err := n.kubernetesVersion()
	if err != nil {
		return err
	}
	data, err := kubelet.Init(c, node, version)
	if err != nil {
		return err
	}
	file := filepath.Join(n.options.RunDir, "kubeadm.yaml")
	if _, err := replaceFile(file, data, 0o600); err != nil {
		return err
	}
	return n.services.Add(service.Spec{
		Name: kubeadmName, Path: kubeadmProgram, Args: append(args, "--config="+file),
		Env: []string{programPath, "HOME=/run"}, After: n.imageServices(), Restart: restart,
		Cgroup: filepath.Join(groupRoot, systemGroup, kubeadmName),
	})
}

func (n *Node) service(name string) (service.Status, bool) {
	for _, s := range n.services.List() {
		if s.Name == name {
			return s, true
		}
	}
	return service.Status{}, false
}

// kubernetesVersion is that of the extension.
func (n *Node) kubernetesVersion() (string, error) {
	list, err := n.Extensions(context.Background())
	if err != nil {
		return "", err
	}
	for _, e := range list.Extensions {
		if e.Name == "kubernetes" {
			return "v" + e.Version, nil
		}
	}
	return "", errors.New("a control plane without kubernetesVersion: no extension has the name kubernetes, whose version would be it")
}
