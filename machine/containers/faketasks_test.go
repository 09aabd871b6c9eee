//go:build linux

package containers

import (
	"context"
	"fmt"
	"os"

	snapshotapi "github.com/containerd/containerd/api/services/snapshots/v1"
	taskapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

type fakeSnapshots struct {
	snapshotapi.UnimplementedSnapshotsServer
	*fake
}

func (f fakeSnapshots) Prepare(_ context.Context, r *snapshotapi.PrepareSnapshotRequest) (*snapshotapi.PrepareSnapshotResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.snapshots[r.GetKey()]; ok {
		return nil, status.Errorf(codes.AlreadyExists, "snapshot %q: already exists", r.GetKey())
	}
	if r.GetSnapshotter() != "overlayfs" || r.GetLabels()["containerd.io/gc.root"] == "" {
		return nil, status.Errorf(codes.InvalidArgument, "%v", r)
	}
	f.snapshots[r.GetKey()] = r.GetParent()
	f.say("snapshot " + r.GetKey())
	return &snapshotapi.PrepareSnapshotResponse{Mounts: []*types.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/l"}}}}, nil
}

func (f fakeSnapshots) Remove(_ context.Context, r *snapshotapi.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.snapshots[r.GetKey()]; !ok {
		return nil, notFound("snapshot " + r.GetKey())
	}
	delete(f.snapshots, r.GetKey())
	f.say("no snapshot " + r.GetKey())
	return &emptypb.Empty{}, nil
}

type fakeTasks struct {
	taskapi.UnimplementedTasksServer
	*fake
}

func (f fakeTasks) Create(_ context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.containers[r.GetContainerID()] == nil {
		return nil, notFound("container " + r.GetContainerID())
	}
	f.tasks[r.GetContainerID()] = &task{request: r, status: tasktypes.Status_CREATED, pid: 4711, ended: make(chan struct{})}
	f.say("task " + r.GetContainerID())
	return &taskapi.CreateTaskResponse{Pid: 4711}, nil
}

// Start prints what a container would.
func (f fakeTasks) Start(_ context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	t, err := f.task(r.GetContainerID())
	if err != nil {
		return nil, err
	}
	for _, path := range []string{t.request.GetStdout(), t.request.GetStderr()} {
		out, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(out, "printed to %s\n", path[len(path)-6:])
		out.Close()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t.status = tasktypes.Status_RUNNING
	f.say("start " + r.GetContainerID())
	if f.containers[r.GetContainerID()].GetImage() == "example.org/short:1" {
		f.end(t, 3)
	}
	return &taskapi.StartResponse{Pid: 4711}, nil
}

func (f fakeTasks) end(t *task, exit uint32) {
	if t.status != tasktypes.Status_STOPPED {
		t.status, t.exit = tasktypes.Status_STOPPED, exit
		close(t.ended)
	}
}

func (f fakeTasks) task(id string) (*task, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.tasks[id]; t != nil {
		return t, nil
	}
	return nil, notFound("task " + id)
}

func (f fakeTasks) Kill(_ context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	t, err := f.task(r.GetContainerID())
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.say(fmt.Sprintf("%v %s", unix.Signal(r.GetSignal()), r.GetContainerID()))
	if t.status == tasktypes.Status_STOPPED {
		return nil, notFound("process already finished")
	}
	if r.GetSignal() == uint32(unix.SIGKILL) || !f.stubborn {
		f.end(t, 128+r.GetSignal())
	}
	return &emptypb.Empty{}, nil
}

func (f fakeTasks) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	t, err := f.task(r.GetContainerID())
	if err != nil {
		return nil, err
	}
	select {
	case <-t.ended:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return &taskapi.WaitResponse{ExitStatus: t.exit}, nil
}

func (f fakeTasks) Delete(_ context.Context, r *taskapi.DeleteTaskRequest) (*taskapi.DeleteResponse, error) {
	t, err := f.task(r.GetContainerID())
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.status != tasktypes.Status_STOPPED {
		return nil, status.Error(codes.FailedPrecondition, "task must be stopped")
	}
	delete(f.tasks, r.GetContainerID())
	f.say("no task " + r.GetContainerID())
	return &taskapi.DeleteResponse{}, nil
}

func (f fakeTasks) Get(_ context.Context, r *taskapi.GetRequest) (*taskapi.GetResponse, error) {
	t, err := f.task(r.GetContainerID())
	if err != nil {
		return nil, err
	}
	return &taskapi.GetResponse{Process: &tasktypes.Process{ID: r.GetContainerID(), Pid: t.pid, Status: t.status}}, nil
}

func (f fakeTasks) List(context.Context, *taskapi.ListTasksRequest) (*taskapi.ListTasksResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &taskapi.ListTasksResponse{}
	for id, t := range f.tasks {
		r.Tasks = append(r.Tasks, &tasktypes.Process{ID: id, Pid: t.pid, Status: t.status})
	}
	return r, nil
}
