import java.io.File;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.hdfs.MiniDFSCluster;

/** Hadoop's HDFS in one process, for tests: a name node with WebHDFS at a port on loopback, and a data node. */
public class MiniHdfs {
    public static void main(String[] args) throws Exception {
        Configuration conf = new Configuration();
        conf.set("hdfs.minidfs.basedir", new File(args[1]).getAbsolutePath());
        conf.setInt("dfs.replication", 1);
        conf.set("hadoop.http.staticuser.user", System.getProperty("user.name"));
        MiniDFSCluster.Builder builder = new MiniDFSCluster.Builder(conf);
        // A directory that is there is of a process before: what is in it is kept.
        boolean fresh = !new File(args[1], "name-0-1").exists();
        MiniDFSCluster cluster = builder.nameNodeHttpPort(Integer.parseInt(args[0])).numDataNodes(1).format(fresh).build();
        cluster.waitActive();
        System.out.println("ready");
        Thread.currentThread().join();
    }
}
