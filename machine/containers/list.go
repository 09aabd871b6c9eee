//go:build linux

package containers

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	containerapi "github.com/containerd/containerd/api/services/containers/v1"
	imageapi "github.com/containerd/containerd/api/services/images/v1"
	taskapi "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"

	"github.com/kilnhq/kiln/machine/control"
)

// Labels that Kubernetes' containers have.
const (
	labelContainer = "io.kubernetes.container.name"
	labelPod       = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
)

// List returns the containers, sorted by name space of Kubernetes, pod and name.
// What they use is read from the control groups below root, which is the node's
// root directory.
func (c *Client) List(ctx context.Context, root fs.FS) ([]control.Container, error) {
	all, err := c.containers.List(ctx, &containerapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	running, err := c.tasks.List(ctx, &taskapi.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	tasks := map[string]*tasktypes.Process{}
	for _, t := range running.GetTasks() {
		// The ID is that of the container; which field has it depends on who
		// answers.
		tasks[cmp.Or(t.GetContainerID(), t.GetID())] = t
	}
	list := make([]control.Container, 0, len(all.GetContainers()))
	for _, x := range all.GetContainers() {
		labels := x.GetLabels()
		item := control.Container{
			Namespace: c.namespace, ID: x.GetID(), Name: cmp.Or(labels[labelContainer], x.GetID()), Image: x.GetImage(),
			Status: "created", Created: x.GetCreatedAt().AsTime(),
		}
		if pod := labels[labelPod]; pod != "" {
			item.Pod = labels[labelNamespace] + "/" + pod
			if labels[labelContainer] == "" { // what holds the pod's network
				item.Name = "(sandbox)"
			}
		}
		if t := tasks[x.GetID()]; t != nil {
			item.Status = strings.ToLower(t.GetStatus().String())
			if t.GetStatus() != tasktypes.Status_STOPPED {
				item.PID = int32(t.GetPid())
				item.Memory, item.CPU = usage(root, item.PID)
			}
		}
		list = append(list, item)
	}
	slices.SortFunc(list, func(a, b control.Container) int {
		return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// usage returns what the control group of a process uses: memory in bytes and CPU
// time in milliseconds. It is 0 for a process that has just ended.
func usage(root fs.FS, pid int32) (memory, cpu uint64) {
	data, err := fs.ReadFile(root, "proc/"+strconv.Itoa(int(pid))+"/cgroup")
	if err != nil {
		return 0, 0
	}
	var dir string
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/"); ok {
			dir = strings.TrimSuffix("sys/fs/cgroup/"+path, "/")
		}
	}
	if dir == "" || !fs.ValidPath(dir) {
		return 0, 0
	}
	if data, err = fs.ReadFile(root, dir+"/memory.current"); err == nil {
		memory, _ = strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	}
	if data, err = fs.ReadFile(root, dir+"/cpu.stat"); err == nil {
		for line := range strings.Lines(string(data)) {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), "usage_usec "); ok {
				microseconds, _ := strconv.ParseUint(text, 10, 64)
				cpu = microseconds / 1000
			}
		}
	}
	return memory, cpu
}

// Images returns the images, sorted by name. The size of one that is not here for
// this machine's architecture, or in parts only, is 0.
func (c *Client) Images(ctx context.Context) ([]control.Image, error) {
	all, err := c.images.List(ctx, &imageapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	list := make([]control.Image, 0, len(all.GetImages()))
	for _, x := range all.GetImages() {
		item := control.Image{
			Namespace: c.namespace, Name: x.GetName(), Digest: x.GetTarget().GetDigest(), Created: x.GetCreatedAt().AsTime(),
		}
		m, err := c.manifest(ctx, x.GetTarget())
		switch {
		case err == nil:
			item.Size = m.size()
		case errors.Is(err, ErrUnreachable), ctx.Err() != nil:
			return nil, err
		}
		list = append(list, item)
	}
	slices.SortFunc(list, func(a, b control.Image) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}
